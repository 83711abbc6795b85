"""Pause a sandbox: the row says ``pausing`` first, then the host keeps its moment and frees everything else.

A pause that fails leaves a sandbox that runs as before; the reason is in the answer alone.
"""

from __future__ import annotations

from contextlib import suppress

import structlog

from wrenn_sandbox.controlplane.intents import intent
from wrenn_sandbox.controlplane.messages import settled
from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.core.errors import Conflict, WrennError
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import Action, State, require
from wrenn_sandbox.db import builds, sandboxes
from wrenn_sandbox.db.builds import Build, Kind
from wrenn_sandbox.db.sandboxes import Change, Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

#: Everything that changed is written and fsynced: gigabytes on a slow disk.
PAUSE_S = 300.0

_log = structlog.get_logger()


async def pause_sandbox(platform: Platform, team: TeamId, sandbox: SandboxId) -> Sandbox:
    """The sandbox, paused: its build is durable, its memory is free. A caller who leaves does not stop it.

    Raises NotFound, Conflict (``invalid_state``), or what the host says: then it runs on.
    """
    row = await get_sandbox(platform, team, sandbox)
    require(row.state, Action.PAUSE)
    return await platform.settling.finish(sandbox, _pause(platform, row, intent(row, Kind.PAUSE)))


async def _pause(platform: Platform, row: Sandbox, intended: Build) -> Sandbox:
    await begin_pause(platform, row, intended)
    try:
        request = pb.PauseSandboxRequest(sandbox_id=str(row.id), build_id=str(intended.id.value))
        answer = await platform.agent.call("PauseSandbox", request, pb.PauseSandboxResponse, timeout_s=PAUSE_S)
        made = settled(intended, answer.build)
    except Exception as error:
        await run_on(platform, row, intended, error)
        raise
    async with platform.db.write() as connection:
        if made.id != intended.id:  # it had paused itself just then
            await builds.forget(connection, [intended.id])
        await builds.ready(connection, made)
        change = Change(host_ip="", build_id=made.id, current_build_id=made.id)
        moved = await sandboxes.move(connection, row.id, {State.PAUSING}, State.PAUSED, change)
    platform.rows.drop(row.id)
    current = await get_sandbox(platform, row.team_id, row.id)
    if not moved and current.state is not State.PAUSED:
        raise Conflict("The sandbox was destroyed while it was being paused.", slug="sandbox_destroyed")
    return current


async def begin_pause(platform: Platform, row: Sandbox, intended: Build) -> None:
    """Write the intent. Raises Conflict when somebody else was faster."""
    async with platform.db.write() as connection:
        if not await sandboxes.move(connection, row.id, {State.RUNNING}, State.PAUSING):
            raise Conflict("The sandbox has just stopped running.")
        await builds.begin(connection, intended)
    platform.rows.drop(row.id)


async def run_on(platform: Platform, row: Sandbox, intended: Build, error: Exception, *, certain: bool = True) -> None:
    """The host did not pause it: as far as we know it runs. Should it be paused after all, the reconciler learns.

    The intent is forgotten when it is ``certain`` that nothing can come of it that would be missed.
    """
    _log.warning("pause failed", sandbox=str(row.id), slug=getattr(error, "slug", ""), reason=str(error))
    with suppress(WrennError):
        async with platform.db.write() as connection:
            await sandboxes.move(connection, row.id, {State.PAUSING}, State.RUNNING)
            if certain:
                await builds.forget(connection, [intended.id])
    platform.rows.drop(row.id)
