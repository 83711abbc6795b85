"""Templates: what sandboxes are made from. A team sees its own and the platform's."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from wrenn_sandbox.core.ids import PLATFORM_TEAM_ID, TeamId, TemplateId
from wrenn_sandbox.db.tables import templates

#: Other names of platform templates.
ALIASES = {"minimal": "base"}


@dataclass(frozen=True, slots=True)
class Template:
    """One template as stored."""

    id: TemplateId
    team_id: TeamId
    name: str


async def by_name(connection: AsyncConnection, team: TeamId, name: str) -> Template | None:
    """The template a team means by ``name``: its own first, then the platform's."""
    query = (
        select(templates.c.id, templates.c.team_id, templates.c.name)
        .where(templates.c.name.in_({name, ALIASES.get(name, name)}))
        .where(templates.c.team_id.in_([team.value, PLATFORM_TEAM_ID.value]))
    )
    rows = list(await connection.execute(query))
    rows.sort(key=lambda row: (row.team_id == PLATFORM_TEAM_ID.value, row.name != name))
    # An alias counts for the platform's templates alone.
    rows = [row for row in rows if row.name == name or row.team_id == PLATFORM_TEAM_ID.value]
    return Template(TemplateId(rows[0].id), TeamId(rows[0].team_id), rows[0].name) if rows else None
