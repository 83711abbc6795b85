"""The connection to the database: one engine, short read and write transactions, and the migrations."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from wrenn_sandbox.core.errors import Invalid, Unavailable

_MIGRATIONS = Path(__file__).parent / "migrations"
#: Key of the advisory lock that lets one control plane at a time migrate (any fixed number).
_MIGRATION_LOCK = 0x77726E6E
#: How long a statement, a lock or a free connection is waited for.
WAIT_S = 10


class Database:
    """One engine. Every transaction is short: nothing but SQL happens inside ``read`` and ``write``."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A read-only transaction. Raises Unavailable (``database_unavailable``) when the database does not answer."""
        async with _translated(), asyncio.timeout(2 * WAIT_S), self.engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed when the context is left without an error."""
        async with _translated(), asyncio.timeout(2 * WAIT_S), self.engine.connect() as connection:
            await connection.execution_options(wrenn_write=True)
            async with connection.begin():
                yield connection

    async def migrate(self) -> None:
        """Bring the schema to the newest revision; several processes may call this at once."""
        async with _translated(), self.engine.connect() as connection:
            await connection.execution_options(wrenn_write=True)
            async with connection.begin():
                if connection.dialect.name == "postgresql":
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                await connection.run_sync(_upgrade)


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Connect to ``url``: ``sqlite:///path`` or ``postgresql://...``; all connections are closed on leaving."""
    target = _with_driver(url)
    if target.get_backend_name() == "sqlite":
        _check_folder(target)
        _close_to_others(target)
        engine = create_async_engine(target, pool_size=8, max_overflow=8, pool_timeout=WAIT_S)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    else:
        options = f"-c statement_timeout={WAIT_S}s -c lock_timeout={WAIT_S}s -c timezone=UTC"
        engine = create_async_engine(
            target,
            pool_size=10,
            max_overflow=10,
            pool_timeout=WAIT_S,
            pool_pre_ping=True,
            connect_args={"connect_timeout": WAIT_S, "options": options},
        )
    try:
        yield Database(engine)
    finally:
        await engine.dispose()


def _with_driver(url: str) -> URL:
    try:
        target = make_url(re.sub(r"^postgres://", "postgresql://", url))
    except ArgumentError as error:
        raise Invalid("The database URL must look like sqlite:///PATH or postgresql://USER@HOST/NAME.") from error
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
    backend = target.get_backend_name()
    if backend not in drivers:
        raise Invalid(f"The database must be SQLite or PostgreSQL, not {backend}.", slug="invalid_option")
    return target.set(drivername=drivers[backend])


def _check_folder(target: URL) -> None:
    folder = Path(target.database or "").parent
    if not folder.is_dir():
        raise Invalid(f"There is no folder {folder} to keep the database in: make it first.", slug="invalid_option")


def _close_to_others(target: URL) -> None:
    """Make the file, or its mode, right before SQLite does: it holds the access tokens and environments of sandboxes.

    SQLite gives its -wal and -shm files the mode of the database (sqlite.org/wal.html).
    """
    path = Path(target.database or "")
    if target.database in (None, "", ":memory:") or str(target.database).startswith("file:") or path.is_dir():
        return
    with suppress(OSError):  # what cannot be opened is SQLite's to report
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see _begin_sqlite
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={WAIT_S * 1000}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails at once when another wrote in between, whatever the
    # busy timeout (sqlite.org/lang_transaction.html); an immediate one waits for its turn.
    write = connection.get_execution_options().get("wrenn_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError, TimeoutError) as error:
        raise _unavailable() from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise _unavailable() from error
        raise


def _unavailable() -> Unavailable:
    return Unavailable("The database does not answer; try again soon.", slug="database_unavailable", retry_after_s=2)


def alembic_config(connection: Connection) -> Config:
    """Alembic's view of our migrations, bound to an open connection."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    command.upgrade(alembic_config(connection), "head")
