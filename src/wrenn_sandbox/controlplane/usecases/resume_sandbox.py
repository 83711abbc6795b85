"""Resume a sandbox from a durable build: the row says ``resuming`` first, then the host restores it.

From ``paused`` it goes on where it was. From ``error`` it goes back to the last moment that was kept, which is why
nobody but its user may ask for that.
"""

from __future__ import annotations

from contextlib import suppress

import structlog

from wrenn_sandbox.controlplane.intents import is_certain
from wrenn_sandbox.controlplane.messages import create_request
from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.create_sandbox import as_others_left_it
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.controlplane.usecases.set_lifetime import UNCHANGED, LifetimeChange
from wrenn_sandbox.core.errors import Conflict, WrennError
from wrenn_sandbox.core.ids import BuildId, SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import Action, State, require
from wrenn_sandbox.core.spec import Lifetime
from wrenn_sandbox.db import sandboxes
from wrenn_sandbox.db.sandboxes import Change, Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

#: A build with much memory is read before it runs.
RESUME_S = 300.0

_log = structlog.get_logger()


async def resume_sandbox(
    platform: Platform, team: TeamId, sandbox: SandboxId, change: LifetimeChange = UNCHANGED
) -> Sandbox:
    """The sandbox, running; with the timeouts it had, or new ones. A deadline that passed meanwhile is gone.

    Raises NotFound, Conflict (``invalid_state``), or what the host says: then it is as it was before.
    """
    row = await get_sandbox(platform, team, sandbox)
    if row.state is not State.ERROR or row.build_id is None:
        require(row.state, Action.RESUME)
    if row.build_id is None:
        raise Conflict("There is no durable build of this sandbox to resume from.", slug="invalid_state")
    work = restore(platform, row, row.build_id, change.anew(row.lifetime))
    return await platform.settling.finish(sandbox, work)


async def restore(platform: Platform, row: Sandbox, build: BuildId, lifetime: Lifetime) -> Sandbox:
    """Run a sandbox that does not run, from one of its builds; to be settled."""
    async with platform.db.write() as connection:
        change = Change(lifetime=lifetime)
        if not await sandboxes.move(connection, row.id, {row.state}, State.RESUMING, change):
            raise Conflict(f"The sandbox is not {row.state.value} any more.")
        wanted = await sandboxes.get(connection, row.team_id, row.id)
    platform.rows.drop(row.id)
    try:
        sandbox = create_request(wanted or row, build)
        request = pb.ResumeSandboxRequest(
            sandbox_id=str(row.id),
            timeout_sec=lifetime.idle_timeout_s,
            default_user=row.default_user,
            default_env=row.envs,
            sandbox=sandbox,
        )
        answer = await platform.agent.call("ResumeSandbox", request, pb.ResumeSandboxResponse, timeout_s=RESUME_S)
    except Exception as error:
        await _put_back(platform, row, error)
        raise
    async with platform.db.write() as connection:
        change = Change(host_ip=answer.host_ip, started=True, current_build_id=build)
        moved = await sandboxes.move(connection, row.id, {State.RESUMING}, State.RUNNING, change)
    platform.rows.drop(row.id)
    current = await get_sandbox(platform, row.team_id, row.id)
    return current if moved else await as_others_left_it(platform, current, "resumed")


async def _put_back(platform: Platform, row: Sandbox, error: Exception) -> None:
    """It does not run. Without an answer it may: then the row says ``resuming`` until the reconciler knows."""
    _log.warning("resume failed", sandbox=str(row.id), slug=getattr(error, "slug", ""), reason=str(error))
    if not is_certain(error):
        return
    with suppress(WrennError):
        async with platform.db.write() as connection:
            change = Change(reason=row.status_reason, slug=row.status_slug, lifetime=row.lifetime)
            await sandboxes.move(connection, row.id, {State.RESUMING}, row.state, change)
    platform.rows.drop(row.id)
