"""What the host is and has, as its agent says."""

from __future__ import annotations

from dataclasses import dataclass

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.core.ids import HostId
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


@dataclass(frozen=True, slots=True)
class Description:
    """A host and its agent's own words."""

    id: HostId
    answer: pb.GetHostResponse


async def describe_host(platform: Platform) -> Description:
    """The present state of the host. Raises Unavailable when its agent does not answer."""
    answer = await platform.agent.call(platform.agent.rpc.get_host, pb.GetHostRequest())
    return Description(platform.host_id, answer)
