"""Keep a moment of a sandbox as a template: the intent first, then the host, then the template's row.

A template can be seen only when its build is durable. One that is to be replaced stays until then, too.
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import structlog

from wrenn_sandbox.controlplane.intents import intent, is_certain, template_of
from wrenn_sandbox.controlplane.messages import is_held_by, plain_uuid, settled
from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.delete_snapshot import let_go
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.controlplane.usecases.pause_sandbox import PAUSE_S, run_on
from wrenn_sandbox.core.errors import AlreadyExists, Conflict, Invalid, WrennError
from wrenn_sandbox.core.ids import PLATFORM_TEAM_ID, SandboxId, TeamId, TemplateId
from wrenn_sandbox.core.lifecycle import Action, State, require
from wrenn_sandbox.db import builds, sandboxes, templates
from wrenn_sandbox.db.builds import Build, Kind
from wrenn_sandbox.db.sandboxes import Change, Sandbox
from wrenn_sandbox.db.templates import Template
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}", re.ASCII)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SnapshotWish:
    """What is asked for. Without a name it gets one; ``overwrite`` replaces a template of that name."""

    name: str = ""
    overwrite: bool = False
    leave_paused: bool = False


async def take_snapshot(platform: Platform, team: TeamId, sandbox: SandboxId, wish: SnapshotWish) -> Template:
    """A new template, of the moment at which a running sandbox is now or a paused one was paused.

    Raises Invalid (``invalid_name``), Conflict (``name_reserved``, ``invalid_state``), AlreadyExists, NotFound, or what
    the host says: then the sandbox is as it was.
    """
    name = wish.name or f"template-{secrets.token_hex(4)}"
    if not _NAME.fullmatch(name):
        raise Invalid(
            "A name has 1 to 64 letters, digits, dots, hyphens and underscores, and begins with a letter or digit.",
            slug="invalid_name",
        )
    await _require_free(platform, team, name, overwrite=wish.overwrite)
    row = await get_sandbox(platform, team, sandbox)
    require(row.state, Action.SNAPSHOT)
    intended = intent(row, Kind.SNAPSHOT, name=name, template=TemplateId(uuid4()))
    work = _take(platform, row, intended, wish)
    return await platform.settling.finish(sandbox, work, also=[intended.id])


async def _require_free(platform: Platform, team: TeamId, name: str, *, overwrite: bool) -> None:
    async with platform.db.read() as connection:
        if await templates.by_name(connection, PLATFORM_TEAM_ID, name) is not None:
            raise Conflict(f"{name!r} is a template of the platform: choose another name.", slug="name_reserved")
        found = await templates.by_name(connection, team, name)
    if found is not None and not overwrite:
        raise _taken(name)


async def _take(platform: Platform, row: Sandbox, intended: Build, wish: SnapshotWish) -> Template:
    pausing = wish.leave_paused and row.state is State.RUNNING
    await _begin(platform, row, intended, overwrite=wish.overwrite, pausing=pausing)
    try:
        request = pb.CreateSnapshotRequest(
            sandbox_id=str(row.id),
            name=intended.name,
            team_id=plain_uuid(row.team_id),
            template_id=str(intended.template_id.value) if intended.template_id else "",
            build_id=str(intended.id.value),
            leave_paused=wish.leave_paused,
        )
        answer = await platform.agent.call("CreateSnapshot", request, pb.CreateSnapshotResponse, timeout_s=PAUSE_S)
        made = settled(intended, answer.build)
    except Exception as error:
        await _failed(platform, row, intended, error, pausing=pausing)
        raise
    template = template_of(row, intended, made)
    async with platform.db.write() as connection:
        old = await templates.remove(connection, row.team_id, intended.name)
        await templates.add(connection, template)
        if made.id != intended.id:
            await builds.forget(connection, [intended.id])
        await builds.ready(connection, made)
        if pausing:
            change = Change(host_ip="", build_id=made.id, current_build_id=made.id)
            await sandboxes.move(connection, row.id, {State.PAUSING}, State.PAUSED, change)
        else:
            own = made.id if is_held_by(answer.build, row.id) else None
            await sandboxes.descend(connection, row.id, build=own, current=made.id)
    platform.rows.drop(row.id)
    if old is not None:
        platform.settling.begin(old.id, let_go(platform, old.id))
    return template


async def _begin(platform: Platform, row: Sandbox, intended: Build, *, overwrite: bool, pausing: bool) -> None:
    """Write the intent, which takes the name. Raises AlreadyExists, or Conflict when the sandbox has just changed."""
    async with platform.db.write() as connection:
        # The intent goes in first: whoever finishes a snapshot of this name meanwhile is seen by the look that follows.
        if not await builds.begin(connection, intended):
            raise AlreadyExists(
                f"A snapshot {intended.name!r} is being made now; wait for it, or choose another name.",
                slug="already_exists",
            )
        found = await templates.by_name(connection, row.team_id, intended.name)
        if found is not None and not overwrite:
            raise _taken(intended.name)
        if pausing and not await sandboxes.move(connection, row.id, {State.RUNNING}, State.PAUSING):
            raise Conflict("The sandbox has just stopped running.")
    platform.rows.drop(row.id)


async def _failed(platform: Platform, row: Sandbox, intended: Build, error: Exception, *, pausing: bool) -> None:
    if pausing:
        await run_on(platform, row, intended, error, certain=is_certain(error))
        return
    _log.warning("snapshot failed", sandbox=str(row.id), slug=getattr(error, "slug", ""), reason=str(error))
    if not is_certain(error):
        return
    with suppress(WrennError):
        async with platform.db.write() as connection:
            await builds.forget(connection, [intended.id])


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"There is a snapshot {name!r}: choose another name, or send ?overwrite=true.", slug="already_exists"
    )
