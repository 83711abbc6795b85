"""Teams, users, and who belongs to which."""

from __future__ import annotations

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from wrenn_sandbox.core.ids import TeamId, UserId
from wrenn_sandbox.db.tables import teams, users, users_teams


async def add_team(connection: AsyncConnection, team: TeamId, name: str, slug: str) -> None:
    """A new team without members."""
    await connection.execute(insert(teams).values(id=team.value, name=name, slug=slug))


async def add_user(connection: AsyncConnection, user: UserId, email: str, name: str, *, is_admin: bool = False) -> None:
    """A new user without a password and without a team."""
    await connection.execute(insert(users).values(id=user.value, email=email, name=name, is_admin=is_admin))


async def add_member(connection: AsyncConnection, team: TeamId, user: UserId, role: str) -> None:
    """Put a user into a team, which becomes the user's default. ``role`` is owner, admin or member."""
    values = {"team_id": team.value, "user_id": user.value, "role": role, "is_default": True}
    await connection.execute(insert(users_teams).values(**values))


async def first_owner(connection: AsyncConnection) -> tuple[TeamId, UserId] | None:
    """The oldest team that has an owner, with that owner."""
    query = (
        select(users_teams.c.team_id, users_teams.c.user_id)
        .where(users_teams.c.role == "owner")
        .order_by(users_teams.c.created_at, users_teams.c.team_id)
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    return (TeamId(row.team_id), UserId(row.user_id)) if row else None
