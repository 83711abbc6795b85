"""Builds: moments of sandboxes that are kept on a host, or are about to be.

::

    CREATING ──▶ READY ──▶ gone, when nothing on the host needs it any more

A row in CREATING states an intent: it is written before the host is asked, and names the template that shall come of
it, so that whoever finds it after a crash can ask the host what became of it and finish or forget it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from sqlalchemy import Row, delete, insert, select, union, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from wrenn_sandbox.core.ids import BuildId, HostId, SandboxId, TeamId, TemplateId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, Shape
from wrenn_sandbox.db.tables import builds, sandboxes, templates


class Kind(Enum):
    """What a build was made for."""

    PAUSE = "pause"
    SNAPSHOT = "snapshot"
    FORK = "fork"


class Status(Enum):
    """Whether a build is known to be durable."""

    CREATING = "creating"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Build:
    """One build as stored. ``sandbox_id`` is whose moment it is, ``parent_id`` what that was restored from.

    ``name`` and ``template_id`` are those of the template that shall come of a snapshot in the making.
    """

    id: BuildId
    team_id: TeamId
    host_id: HostId
    sandbox_id: SandboxId
    kind: Kind
    created_at: datetime
    status: Status = Status.CREATING
    shape: Shape = DEFAULT_SHAPE
    parent_id: BuildId | None = None
    template_id: TemplateId | None = None
    name: str = ""
    size_bytes: int = 0


async def begin(connection: AsyncConnection, build: Build) -> bool:
    """Write an intent; false when another snapshot of its name is in the making."""
    try:
        async with connection.begin_nested():
            await connection.execute(insert(builds).values(**_columns(build)))
    except IntegrityError:
        if not build.name:
            raise
        return False
    return True


async def ready(connection: AsyncConnection, build: Build) -> None:
    """Write down that a build is durable, whether its intent is there or not. What it was made for stays."""
    facts = _columns(build) | {"status": Status.READY.value, "name": "", "template_id": None}
    known = {name: facts[name] for name in ("parent_id", "size_bytes", "created_at", "vcpus", "memory_mb")}
    query = update(builds).where(builds.c.id == build.id.value, builds.c.team_id == build.team_id.value)
    settled = query.values(status=Status.READY.value, name="", template_id=None, **known)
    if (await connection.execute(settled)).rowcount == 0:
        await connection.execute(insert(builds).values(**facts))


async def forget(connection: AsyncConnection, ids: Collection[BuildId]) -> None:
    """Remove rows: intents that came to nothing, builds that are gone."""
    if ids:
        await connection.execute(delete(builds).where(builds.c.id.in_([build.value for build in ids])))


async def intended(connection: AsyncConnection, build: BuildId) -> Build | None:
    """The intent with this id, of whatever team, if it still is one: for the reconciler."""
    query = select(builds).where(builds.c.id == build.value, builds.c.status == Status.CREATING.value)
    row = (await connection.execute(query)).one_or_none()
    return _record(row) if row else None


async def some(connection: AsyncConnection, team: TeamId, ids: Iterable[BuildId]) -> list[Build]:
    """Those of a team's durable builds that have one of these ids."""
    query = select(builds).where(
        builds.c.team_id == team.value,
        builds.c.status == Status.READY.value,
        builds.c.id.in_([build.value for build in ids]),
    )
    return [_record(row) for row in await connection.execute(query)]


async def of_sandbox(connection: AsyncConnection, team: TeamId, sandbox: SandboxId) -> list[Build]:
    """A sandbox's own durable builds."""
    query = select(builds).where(
        builds.c.team_id == team.value,
        builds.c.sandbox_id == sandbox.value,
        builds.c.status == Status.READY.value,
    )
    return [_record(row) for row in await connection.execute(query)]


async def of_host(connection: AsyncConnection, host: HostId) -> list[Build]:
    """Every build and every intent on a host, of every team: for the reconciler."""
    return [_record(row) for row in await connection.execute(select(builds).where(builds.c.host_id == host.value))]


async def needed(connection: AsyncConnection, host: HostId) -> frozenset[BuildId]:
    """The builds on a host that a template or a sandbox that has not ended names: for the reconciler."""
    query = union(
        select(templates.c.build_id).where(templates.c.host_id == host.value, templates.c.build_id.is_not(None)),
        select(sandboxes.c.build_id).where(
            sandboxes.c.host_id == host.value,
            sandboxes.c.build_id.is_not(None),
            sandboxes.c.status != State.STOPPED.value,
        ),
    )
    return frozenset(BuildId(row.build_id) for row in await connection.execute(query))


def _columns(build: Build) -> dict[str, object]:
    return {
        "id": build.id.value,
        "team_id": build.team_id.value,
        "host_id": build.host_id.value,
        "sandbox_id": build.sandbox_id.value,
        "parent_id": build.parent_id.value if build.parent_id else None,
        "template_id": build.template_id.value if build.template_id else None,
        "kind": build.kind.value,
        "status": build.status.value,
        "name": build.name,
        "vcpus": build.shape.vcpus,
        "memory_mb": build.shape.memory_mib,
        "size_bytes": build.size_bytes,
        "created_at": build.created_at,
    }


def _record(row: Row[Any]) -> Build:
    return Build(
        id=BuildId(row.id),
        team_id=TeamId(row.team_id),
        host_id=HostId(row.host_id),
        sandbox_id=SandboxId(row.sandbox_id),
        kind=Kind(row.kind),
        created_at=row.created_at,
        status=Status(row.status),
        shape=Shape(row.vcpus, row.memory_mb),
        parent_id=BuildId(row.parent_id) if row.parent_id else None,
        template_id=TemplateId(row.template_id) if row.template_id else None,
        name=row.name,
        size_bytes=row.size_bytes,
    )
