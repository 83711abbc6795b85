"""What the host is and has, as its agent says."""

from __future__ import annotations

import time
from dataclasses import dataclass

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.core.ids import HostId
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

#: A host that the reconciler has not heard of for longer is called silent.
SILENT_S = 10.0


@dataclass(frozen=True, slots=True)
class Description:
    """A host and its agent's own words."""

    id: HostId
    answer: pb.GetHostResponse


async def describe_host(platform: Platform) -> Description:
    """The present state of the host. Raises Unavailable when its agent does not answer."""
    answer = await platform.agent.call("GetHost", pb.GetHostRequest(), pb.GetHostResponse)
    return Description(platform.host_id, answer)


def host_status(platform: Platform) -> str:
    """``online``, ``silent`` or ``unknown`` (not heard of since this control plane started)."""
    if not platform.contact.answered:
        return "unknown"
    return "online" if time.monotonic() - platform.contact.last_answer_s < SILENT_S else "silent"
