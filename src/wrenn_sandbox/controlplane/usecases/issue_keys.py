"""API keys: issue, list, revoke, and recognise."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from uuid import uuid4

from wrenn_sandbox.controlplane.platform import Caller, Platform, now
from wrenn_sandbox.core.errors import Bug, Conflict, NotFound, Unauthenticated
from wrenn_sandbox.core.ids import ApiKeyId, TeamId, UserId
from wrenn_sandbox.db import api_keys
from wrenn_sandbox.db.api_keys import ApiKey as ApiKey  # for the edge, which must not know the database
from wrenn_sandbox.db.engine import Database

_FORM = re.compile(r"(?:wrn|e2b)_([0-9a-f]{32})", re.ASCII)
_PREFIX_LENGTH = 10


@dataclass(frozen=True, slots=True)
class Issued:
    """A new key; ``secret`` is shown once and stored nowhere."""

    key: ApiKey
    secret: str

    def __repr__(self) -> str:
        return f"Issued({self.key.id})"


def key_hash(presented: str) -> str | None:
    """The stored form of a presented key; None when it has not the form of one. The e2b prefix counts as ours."""
    match = _FORM.fullmatch(presented)
    return hashlib.sha256(f"wrn_{match[1]}".encode()).hexdigest() if match else None


def holds_key(text: str) -> bool:
    """Whether there is something in ``text`` that may be a key, written neatly or not."""
    return _FORM.search(text.lower()) is not None


async def recognise(platform: Platform, presented: str) -> Caller:
    """Who presents this key. Raises Unauthenticated."""
    digest = key_hash(presented)
    if digest is None:
        raise Unauthenticated("The API key must look like wrn_ and 32 hexadecimal digits.")
    key = platform.keys.get(digest)
    if key is None:
        ticket = platform.keys.ticket()
        async with platform.db.read() as connection:
            key = await api_keys.by_hash(connection, digest)
        if key is None:
            raise Unauthenticated("This API key is not known; it may have been revoked.")
        platform.keys.put(digest, key, ticket)
    platform.used_keys[key.id] = now()
    return Caller(key.team_id, key)


async def issue_key(platform: Platform, caller: Caller, name: str) -> Issued:
    """A new key for the caller's team, in the name of the user that made the caller's key."""
    return await new_key(platform.db, caller.team, caller.key.created_by, name)


async def new_key(db: Database, team: TeamId, owner: UserId, name: str) -> Issued:
    """Make and store a key."""
    secret = f"wrn_{secrets.token_hex(16)}"
    digest = key_hash(secret)
    if digest is None:
        raise Bug("a new key has not the form of a key")
    key = ApiKey(ApiKeyId(uuid4()), team, name, secret[:_PREFIX_LENGTH], owner, now(), None)
    async with db.write() as connection:
        await api_keys.add(connection, key, digest)
    return Issued(key, secret)


async def list_keys(platform: Platform, team: TeamId) -> list[ApiKey]:
    """The team's keys, newest first."""
    async with platform.db.read() as connection:
        return await api_keys.of_team(connection, team)


async def revoke_key(platform: Platform, team: TeamId, key: ApiKeyId) -> None:
    """Delete a key. Raises NotFound, and Conflict (``last_key``) for the team's only one."""
    async with platform.db.write() as connection:
        if not await api_keys.remove(connection, team, key):
            raise NotFound(f"There is no API key {key}.")
        if not await api_keys.count(connection, team):
            raise Conflict("This is the team's only key: make another one first.", slug="last_key")
    platform.keys.clear()
    platform.used_keys.pop(key, None)


async def write_uses(platform: Platform) -> None:
    """Write down when keys were last used; called now and then, never by a request."""
    used, platform.used_keys = platform.used_keys, {}
    if used:
        async with platform.db.write() as connection:
            await api_keys.touch(connection, used)
