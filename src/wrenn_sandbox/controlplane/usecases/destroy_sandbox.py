"""Destroy a sandbox: the row says ``stopping`` first, so that what is begun is also ended after a crash."""

from __future__ import annotations

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.db import sandboxes
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

DESTROY_S = 30.0
_ENDABLE = frozenset(State) - {State.STOPPED, State.STOPPING}


async def destroy_sandbox(platform: Platform, team: TeamId, sandbox: SandboxId) -> None:
    """End a sandbox and forget its machine. Again, for one that is stopped, it does nothing.

    Raises NotFound; Unavailable when the host does not answer: it is destroyed then as soon as the host is back.
    """
    row = await get_sandbox(platform, team, sandbox)
    if row.state is State.STOPPED:
        return
    await platform.settling.finish(sandbox, _destroy(platform, sandbox))


async def _destroy(platform: Platform, sandbox: SandboxId) -> None:
    async with platform.db.write() as connection:
        await sandboxes.move(connection, sandbox, _ENDABLE, State.STOPPING)
    platform.rows.drop(sandbox)
    request = pb.DestroySandboxRequest(sandbox_id=str(sandbox))
    await platform.agent.call("DestroySandbox", request, pb.DestroySandboxResponse, timeout_s=DESTROY_S)
    async with platform.db.write() as connection:
        await sandboxes.move(connection, sandbox, {State.STOPPING}, State.STOPPED)
