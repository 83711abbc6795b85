"""Both databases, each fresh for every test: SQLite in a file, PostgreSQL from a server that is started here."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from wrenn_sandbox.db.engine import Database, open_database

Opener = Callable[[], AbstractAsyncContextManager[Database]]


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that listens on a Unix socket in ``folder`` and nowhere else."""

    folder: Path

    def url(self, name: str) -> str:
        """The URL of one database of it."""
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def create(self) -> str:
        """A new, empty database; its URL."""
        name = f"t{uuid4().hex}"
        psql = [str(binaries() / "psql"), "-h", str(self.folder), "-U", "postgres", "-q", "-c"]
        subprocess.run([*psql, f"CREATE DATABASE {name}"], check=True)
        return self.url(name)


def binaries() -> Path:
    """Debian's newest PostgreSQL; tests that need it are skipped where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    if not found:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    return found[-1].parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server of its own: started as an unprivileged user, stopped and removed afterwards."""
    tools = binaries()
    account = pwd.getpwnam("postgres" if _has_account("postgres") else "nobody") if os.geteuid() == 0 else None
    identity = {"user": account.pw_uid, "group": account.pw_gid} if account else {}
    folder = Path(tempfile.mkdtemp(prefix="wrenn-pg-"))
    data = folder / "data"
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)
    options = {"cwd": folder, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **identity}
    try:
        initdb = [tools / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
        subprocess.run(initdb, check=True, **options)  # type: ignore[call-overload]
        settings = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=100"
        start = [tools / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", settings, "start"]
        subprocess.run(start, check=True, **options)  # type: ignore[call-overload]
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        try:
            yield Server(folder)
        finally:
            stop = [tools / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, **options)  # type: ignore[call-overload]
        assert not _runs(pid)
    finally:
        shutil.rmtree(folder)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # dead, and waiting for an init that reaps slowly


def _has_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'wrenn.db'}"
    server: Server = request.getfixturevalue("postgres")
    return server.create()


@pytest.fixture
def opened(database_url: str) -> Opener:
    """Opens the migrated database; for use inside ``asyncio.run``."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[Database]:
        async with open_database(database_url) as database:
            await database.migrate()
            yield database

    return open_


@pytest.fixture
def run() -> Callable[..., object]:
    """``asyncio.run``, by a short name."""
    return asyncio.run
