"""Put a sandbox back to a moment of its own history, in place: it keeps its id, its token and its timeouts.

The row of a running one names that moment first, then the host swaps the machine.
"""

from __future__ import annotations

from contextlib import suppress

import structlog

from wrenn_sandbox.controlplane.intents import is_certain
from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.controlplane.usecases.find_snapshots import history_of
from wrenn_sandbox.controlplane.usecases.resume_sandbox import RESUME_S, restore
from wrenn_sandbox.controlplane.usecases.set_lifetime import UNCHANGED
from wrenn_sandbox.core.errors import Conflict, NotFound, WrennError
from wrenn_sandbox.core.ids import BuildId, SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import Action, State, require
from wrenn_sandbox.db import sandboxes
from wrenn_sandbox.db.sandboxes import Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

_log = structlog.get_logger()


async def rollback_sandbox(platform: Platform, team: TeamId, sandbox: SandboxId, snapshot: str) -> Sandbox:
    """The sandbox, running, as it was at ``snapshot``: a build's id or a template's name, of its own tree.

    Raises NotFound (``snapshot_not_found``), Conflict (``invalid_state``), or what the host says: then it is as it was.
    """
    row = await get_sandbox(platform, team, sandbox)
    require(row.state, Action.ROLLBACK)
    build = await _moment(platform, row, snapshot)
    if row.state is State.RUNNING:
        return await platform.settling.finish(sandbox, _roll_back(platform, row, build))
    return await platform.settling.finish(sandbox, restore(platform, row, build, UNCHANGED.anew(row.lifetime)))


async def _moment(platform: Platform, row: Sandbox, snapshot: str) -> BuildId:
    moments = await history_of(platform, row)
    for moment in moments:
        if str(moment.id) == snapshot:
            return moment.id
    for moment in moments:
        if snapshot in moment.names:
            return moment.id
    raise NotFound(
        f"{snapshot[:80]!r} is no snapshot of this sandbox's history: GET /v1/sandboxes/{row.id}/snapshots lists them.",
        slug="snapshot_not_found",
    )


async def _roll_back(platform: Platform, row: Sandbox, build: BuildId) -> Sandbox:
    async with platform.db.write() as connection:
        if not await sandboxes.begin_rollback(connection, row.id, build):
            raise Conflict("The sandbox has just stopped running.")
    platform.rows.drop(row.id)
    try:
        request = pb.RollbackSandboxRequest(sandbox_id=str(row.id), build_id=str(build.value))
        answer = await platform.agent.call("RollbackSandbox", request, pb.RollbackSandboxResponse, timeout_s=RESUME_S)
    except Exception as error:
        await _failed(platform, row, error)
        raise
    async with platform.db.write() as connection:
        await sandboxes.descend(connection, row.id, build=build, current=build, host_ip=answer.host_ip, settled=True)
    platform.rows.drop(row.id)
    current = await get_sandbox(platform, row.team_id, row.id)
    if current.state is not State.RUNNING:
        raise Conflict("The sandbox ended while it was being put back.", slug="sandbox_ended")
    return current


async def _failed(platform: Platform, row: Sandbox, error: Exception) -> None:
    """It is as it was. Without an answer it may not be: then the intent stays until the reconciler knows."""
    _log.warning("rollback failed", sandbox=str(row.id), slug=getattr(error, "slug", ""), reason=str(error))
    if not is_certain(error):
        return
    with suppress(WrennError):
        async with platform.db.write() as connection:
            await sandboxes.descend(connection, row.id, settled=True)
    platform.rows.drop(row.id)
