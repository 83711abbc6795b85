"""Templates: what sandboxes are made from. A team sees its own and the platform's.

A template of type snapshot has a build; its row is written when that build is durable and never before, so whatever can
be seen can be used.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from sqlalchemy import Row, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from wrenn_sandbox.core.ids import PLATFORM_TEAM_ID, BuildId, HostId, TeamId, TemplateId
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, Shape
from wrenn_sandbox.db.tables import templates

#: Other names of platform templates.
ALIASES = {"minimal": "base"}


class Type(Enum):
    """What a template is: a disk that is booted once for each shape, or one moment, which fixes the shape."""

    BASE = "base"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Template:
    """One template as stored. ``host_id`` is where its build lies; ``default_env`` may hold people's secrets."""

    id: TemplateId
    team_id: TeamId
    name: str
    created_at: datetime
    type: Type = Type.BASE
    shape: Shape = DEFAULT_SHAPE
    size_bytes: int = 0
    disk_size_mb: int = 0
    host_id: HostId | None = None
    build_id: BuildId | None = None
    default_user: str = ""
    default_env: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def platform(self) -> bool:
        """Whether all teams share it."""
        return self.team_id == PLATFORM_TEAM_ID


async def by_name(connection: AsyncConnection, team: TeamId, name: str) -> Template | None:
    """The template a team means by ``name``: its own first, then the platform's."""
    query = (
        select(templates)
        .where(templates.c.name.in_({name, ALIASES.get(name, name)}))
        .where(templates.c.team_id.in_([team.value, PLATFORM_TEAM_ID.value]))
    )
    rows = list(await connection.execute(query))
    rows.sort(key=lambda row: (row.team_id == PLATFORM_TEAM_ID.value, row.name != name))
    # An alias counts for the platform's templates alone.
    rows = [row for row in rows if row.name == name or row.team_id == PLATFORM_TEAM_ID.value]
    return _record(rows[0]) if rows else None


async def visible(connection: AsyncConnection, team: TeamId, types: Collection[Type] = tuple(Type)) -> list[Template]:
    """A team's own templates and the platform's, newest first."""
    query = select(templates).where(
        templates.c.team_id.in_([team.value, PLATFORM_TEAM_ID.value]),
        templates.c.type.in_([kind.value for kind in types]),
    )
    rows = await connection.execute(query.order_by(templates.c.created_at.desc(), templates.c.id))
    return [_record(row) for row in rows]


async def of_builds(connection: AsyncConnection, team: TeamId, builds: Collection[BuildId]) -> list[Template]:
    """A team's templates that are one of these builds, oldest first."""
    query = select(templates).where(
        templates.c.team_id == team.value, templates.c.build_id.in_([build.value for build in builds])
    )
    return [_record(row) for row in await connection.execute(query.order_by(templates.c.created_at, templates.c.id))]


async def of_host(connection: AsyncConnection, host: HostId) -> frozenset[TemplateId]:
    """The templates whose builds lie on a host, of every team: for the reconciler."""
    rows = await connection.execute(select(templates.c.id).where(templates.c.host_id == host.value))
    return frozenset(TemplateId(row.id) for row in rows)


async def add(connection: AsyncConnection, template: Template) -> None:
    """Write a new row."""
    await connection.execute(
        insert(templates).values(
            id=template.id.value,
            team_id=template.team_id.value,
            name=template.name,
            type=template.type.value,
            vcpus=template.shape.vcpus,
            memory_mb=template.shape.memory_mib,
            size_bytes=template.size_bytes,
            disk_size_mb=template.disk_size_mb,
            created_at=template.created_at,
            host_id=template.host_id.value if template.host_id else None,
            build_id=template.build_id.value if template.build_id else None,
            default_user=template.default_user,
            default_env=template.default_env,
        )
    )


async def remove(connection: AsyncConnection, team: TeamId, name: str) -> Template | None:
    """Delete a team's own template; returns it as it was, None when there was none."""
    query = select(templates).where(templates.c.team_id == team.value, templates.c.name == name)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    gone = await connection.execute(delete(templates).where(templates.c.id == row.id))
    return _record(row) if gone.rowcount == 1 else None


def _record(row: Row[Any]) -> Template:
    return Template(
        id=TemplateId(row.id),
        team_id=TeamId(row.team_id),
        name=row.name,
        type=Type(row.type),
        shape=Shape(row.vcpus, row.memory_mb),
        size_bytes=row.size_bytes,
        disk_size_mb=row.disk_size_mb,
        created_at=row.created_at,
        host_id=HostId(row.host_id) if row.host_id else None,
        build_id=BuildId(row.build_id) if row.build_id else None,
        default_user=row.default_user,
        default_env=dict(row.default_env),
    )
