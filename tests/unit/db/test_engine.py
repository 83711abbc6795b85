from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from sqlalchemy import text

from wrenn_sandbox.core.errors import Invalid, Unavailable
from wrenn_sandbox.db.engine import open_database


def run_with(url: str, work) -> None:
    async def main() -> None:
        async with open_database(url) as database:
            await work(database)

    asyncio.run(main())


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "", "sqlite:////no/such/folder/x.db"])
def test_urls_that_cannot_be_are_refused_with_a_sentence(url: str) -> None:
    async def nothing(_database: object) -> None:
        pytest.fail("it was opened")

    with pytest.raises(Invalid):
        run_with(url, nothing)


@pytest.mark.parametrize("prefix", ["sqlite:///", "sqlite+aiosqlite:///"])
def test_sqlite_is_set_up_for_many_readers_and_strict_keys(tmp_path: Path, prefix: str) -> None:
    async def look(database) -> None:
        async with database.read() as connection:
            for name, value in (("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 10_000)):
                assert (await connection.execute(text(f"PRAGMA {name}"))).scalar_one() == value

    run_with(f"{prefix}{tmp_path / 'x.db'}", look)


@pytest.mark.parametrize("before", [None, 0o644])
def test_nobody_else_can_read_what_is_kept(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "x.db"
    if before is not None:
        path.touch()
        path.chmod(before)
    modes = {}

    async def work(database) -> None:
        async with database.write() as connection:
            await connection.execute(text("CREATE TABLE t (n INTEGER)"))
        modes.update({found.name: oct(found.stat().st_mode & 0o777) for found in tmp_path.iterdir()})

    umask = os.umask(0)
    try:
        run_with(f"sqlite:///{path}", work)
    finally:
        os.umask(umask)
    assert modes == {"x.db": "0o600", "x.db-wal": "0o600", "x.db-shm": "0o600"}


def test_what_fails_is_rolled_back(tmp_path: Path) -> None:
    async def work(database) -> None:
        async with database.write() as connection:
            await connection.execute(text("CREATE TABLE t (n INTEGER)"))
        with pytest.raises(RuntimeError):
            async with database.write() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))
                raise RuntimeError
        async with database.read() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM t"))).scalar_one() == 0

    run_with(f"sqlite:///{tmp_path / 'x.db'}", work)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # aiosqlite's, after the loop's end
def test_a_database_that_fails_is_unavailable_not_a_bug(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.mkdir()  # SQLite cannot open a folder

    async def work(database) -> None:
        with pytest.raises(Unavailable) as caught:
            async with database.read() as connection:
                await connection.execute(text("SELECT * FROM sandboxes"))
        assert caught.value.slug == "database_unavailable" and caught.value.retry_after_s > 0

    run_with(f"sqlite:///{path}", work)
