"""Fork a sandbox: children that begin where it is now, memory and disk; all of them or none."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import uuid4

import structlog

from wrenn_sandbox.controlplane.intents import intent, is_certain
from wrenn_sandbox.controlplane.messages import create_request, is_held_by, settled
from wrenn_sandbox.controlplane.platform import Platform, now
from wrenn_sandbox.controlplane.usecases.create_sandbox import CREATE_S, UNWANTED, destroy_quietly
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.controlplane.usecases.set_lifetime import UNCHANGED, LifetimeChange
from wrenn_sandbox.core.errors import Bug, Invalid, WrennError
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import Action, State, require
from wrenn_sandbox.core.spec import MAX_CHILDREN
from wrenn_sandbox.db import builds, sandboxes
from wrenn_sandbox.db.builds import Build, Kind
from wrenn_sandbox.db.sandboxes import Change, Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ForkWish:
    """How many children, 1 to ``MAX_CHILDREN``, and what their timeouts shall be beside their source's."""

    count: int
    lifetime: LifetimeChange = UNCHANGED


async def fork_sandbox(platform: Platform, team: TeamId, sandbox: SandboxId, wish: ForkWish) -> list[Sandbox]:
    """The children, running. The source goes on, or stays paused.

    Raises Invalid (``invalid_size``), NotFound, Conflict (``invalid_state``), or what the host says: then there is no
    child.
    """
    if not 1 <= wish.count <= MAX_CHILDREN:
        raise Invalid(f"A fork makes 1 to {MAX_CHILDREN} children: fork again for more.", slug="invalid_size")
    source = await get_sandbox(platform, team, sandbox)
    require(source.state, Action.FORK)
    intended = intent(source, Kind.FORK)
    children = [_child(source, intended, wish.lifetime) for _ in range(wish.count)]
    work = _fork(platform, source, intended, children)
    return await platform.settling.finish(sandbox, work, also=[child.id for child in children])


def _child(source: Sandbox, intended: Build, change: LifetimeChange) -> Sandbox:
    """A sandbox like its source, but for its identity; it names the fork, so that all or none come to be."""
    moment = now()
    return replace(
        source,
        id=SandboxId(uuid4()),
        state=State.PENDING,
        lifetime=change.anew(source.lifetime),
        created_at=moment,
        last_updated=moment,
        access_token=secrets.token_hex(32),
        host_ip="",
        status_reason="",
        status_slug="",
        started_at=None,
        stopped_at=None,
        last_active_at=None,
        build_id=None,
        intended_build_id=intended.id,
    )


async def _fork(platform: Platform, source: Sandbox, intended: Build, children: list[Sandbox]) -> list[Sandbox]:
    async with platform.db.write() as connection:
        await builds.begin(connection, intended)
        for child in children:
            await sandboxes.add(connection, child)
    try:
        request = pb.ForkSandboxRequest(
            sandbox_id=str(source.id),
            build_id=str(intended.id.value),
            children=[create_request(child) for child in children],
        )
        answer = await platform.agent.call("ForkSandbox", request, pb.ForkSandboxResponse, timeout_s=CREATE_S)
        made = settled(intended, answer.build)
        addresses = {child.sandbox_id: child.host_ip for child in answer.children}
        if missing := {str(child.id) for child in children} - addresses.keys():
            raise Bug(f"The host made a fork without {len(missing)} of its children.")
    except Exception as error:
        await _give_up(platform, intended, children, error)
        raise
    async with platform.db.write() as connection:
        if made.id != intended.id:
            await builds.forget(connection, [intended.id])
        await builds.ready(connection, made)
        own = made.id if is_held_by(answer.build, source.id) else None
        await sandboxes.descend(connection, source.id, build=own, current=made.id)
        for child in children:
            change = Change(host_ip=addresses[str(child.id)], started=True, current_build_id=made.id)
            await sandboxes.move(connection, child.id, {State.PENDING}, State.RUNNING, change)
        rows = [await sandboxes.get(connection, source.team_id, child.id) for child in children]
    platform.rows.drop(source.id)
    born = [child for child in rows if child is not None]
    for child in born:
        if child.state in UNWANTED:
            await destroy_quietly(platform, child.id)
    return born


async def _give_up(platform: Platform, intended: Build, children: list[Sandbox], failure: Exception) -> None:
    """No child is there, or will be: what comes up without an answer to us has no right to, and is destroyed."""
    error = failure if isinstance(failure, WrennError) else Bug("Making it failed.")
    _log.warning("fork failed", source=str(intended.sandbox_id), slug=error.slug, reason=error.message)
    with suppress(WrennError):
        async with platform.db.write() as connection:
            if is_certain(failure):
                await builds.forget(connection, [intended.id])
            change = Change(reason=error.message, slug=error.slug)
            for child in children:
                await sandboxes.move(connection, child.id, {State.PENDING}, State.ERROR, change)
