"""First start: a team, its owner, its first key, and the host; later starts find them."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from wrenn_sandbox.controlplane.usecases.issue_keys import key_hash, new_key
from wrenn_sandbox.core.ids import HostId, TeamId, UserId
from wrenn_sandbox.db import accounts, api_keys, hosts
from wrenn_sandbox.db.engine import Database

OWNER_EMAIL = "admin@localhost"


async def set_up(db: Database, agent_url: str, key_file: Path | None) -> HostId:
    """Make what is missing; returns the host's id.

    The first key is written to ``key_file``, mode 0600. When that file is lost, or holds a key that this database does
    not know, the next start makes a new key.
    """
    await db.migrate()
    team, owner = await _first_team(db)
    async with db.write() as connection:
        host = await hosts.ensure(connection, HostId(uuid4()), agent_url, owner)
    if key_file is not None and not await _knows_key_of(db, key_file):
        issued = await new_key(db, team, owner, "First key")
        _write_secret(key_file, issued.secret)
    return host


async def _first_team(db: Database) -> tuple[TeamId, UserId]:
    async with db.write() as connection:
        found = await accounts.first_owner(connection)
        if found is not None:
            return found
        team, owner = TeamId(uuid4()), UserId(uuid4())
        await accounts.add_user(connection, owner, OWNER_EMAIL, "Administrator", is_admin=True)
        await accounts.add_team(connection, team, "Default", "default")
        await accounts.add_member(connection, team, owner, "owner")
        return team, owner


async def _knows_key_of(db: Database, key_file: Path) -> bool:
    try:
        digest = key_hash(key_file.read_text().strip())
    except FileNotFoundError:
        return False
    if digest is None:
        return False
    async with db.read() as connection:
        return await api_keys.by_hash(connection, digest) is not None


def _write_secret(path: Path, secret: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
