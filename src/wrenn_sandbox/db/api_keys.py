"""API keys: only the SHA-256 of a key is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from wrenn_sandbox.core.ids import ApiKeyId, TeamId, UserId
from wrenn_sandbox.db.tables import team_api_keys as keys


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key as stored; ``prefix`` is its first ten characters, for people to recognise it by."""

    id: ApiKeyId
    team_id: TeamId
    name: str
    prefix: str
    created_by: UserId
    created_at: datetime
    last_used: datetime | None


async def add(connection: AsyncConnection, key: ApiKey, key_hash: str) -> None:
    """Store a new key; ``key_hash`` is the hex SHA-256 of the secret."""
    await connection.execute(
        insert(keys).values(
            id=key.id.value,
            team_id=key.team_id.value,
            name=key.name,
            key_hash=key_hash,
            key_prefix=key.prefix,
            created_by=key.created_by.value,
            created_at=key.created_at,
        )
    )


async def by_hash(connection: AsyncConnection, key_hash: str) -> ApiKey | None:
    """The key with this hash, of whatever team: this is how a caller's team is found."""
    row = (await connection.execute(select(keys).where(keys.c.key_hash == key_hash))).one_or_none()
    return _record(row) if row else None


async def of_team(connection: AsyncConnection, team: TeamId) -> list[ApiKey]:
    """All keys of a team, newest first."""
    query = select(keys).where(keys.c.team_id == team.value).order_by(keys.c.created_at.desc(), keys.c.id)
    return [_record(row) for row in await connection.execute(query)]


async def count(connection: AsyncConnection, team: TeamId) -> int:
    """How many keys a team has."""
    query = select(func.count()).select_from(keys).where(keys.c.team_id == team.value)
    return int((await connection.execute(query)).scalar_one())


async def remove(connection: AsyncConnection, team: TeamId, key: ApiKeyId) -> bool:
    """Delete a key of a team; false when there was none."""
    query = delete(keys).where(keys.c.team_id == team.value, keys.c.id == key.value)
    return (await connection.execute(query)).rowcount == 1


async def touch(connection: AsyncConnection, used: Mapping[ApiKeyId, datetime]) -> None:
    """Record when keys were last used."""
    for key, when in used.items():
        await connection.execute(update(keys).where(keys.c.id == key.value).values(last_used=when))


def _record(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=ApiKeyId(row.id),
        team_id=TeamId(row.team_id),
        name=row.name,
        prefix=row.key_prefix,
        created_by=UserId(row.created_by),
        created_at=row.created_at,
        last_used=row.last_used,
    )
