from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Denied
from wrenn_sandbox.envd import rights
from wrenn_sandbox.envd.rights import FileThreads, rights_of
from wrenn_sandbox.envd.users import User

ROOT = User("root", 0, 0, (0,), "/root", "/bin/sh")
NOBODY = User("nobody", 65534, 65534, (65534, 4242), "/", "/bin/sh")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")


def credentials() -> dict[str, list[str]]:
    lines = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text().splitlines()
    return {
        line.partition(":")[0]: line.split()[1:] for line in lines if line.startswith(("Uid", "Gid", "Groups", "Cap"))
    }


@as_root
def test_a_thread_takes_on_rights_and_gives_them_back() -> None:
    before = credentials()
    with rights_of(NOBODY):
        inside = credentials()
    assert inside["Uid"] == ["0", "0", "0", "65534"]  # real, effective, saved, file system
    assert inside["Gid"] == ["0", "0", "0", "65534"]
    assert inside["Groups"] == ["4242", "65534"]
    dac_override = 1 << 1  # linux/capability.h
    assert int(before["CapEff"][0], 16) & dac_override
    assert not int(inside["CapEff"][0], 16) & dac_override
    assert credentials() == before


@as_root
def test_rights_come_back_after_an_error() -> None:
    before = credentials()
    with pytest.raises(ZeroDivisionError), rights_of(NOBODY):
        raise ZeroDivisionError
    assert credentials() == before


@as_root
def test_other_threads_keep_theirs() -> None:
    async def main() -> None:
        threads = FileThreads(2)
        inside, others = threading.Barrier(2, timeout=10), []

        def as_nobody() -> None:
            inside.wait()
            inside.wait()

        def look() -> None:
            inside.wait()
            others.append(credentials())
            inside.wait()

        before = credentials()
        async with asyncio.TaskGroup() as group:
            group.create_task(threads.run(NOBODY, as_nobody))
            group.create_task(threads.do(look))
        threads.close()
        assert others == [before]
        assert credentials() == before

    asyncio.run(main())


@as_root
def test_a_file_of_roots_stays_closed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)

    async def main() -> None:
        threads = FileThreads(1)
        with pytest.raises(PermissionError):
            await threads.run(NOBODY, secret.read_text)
        assert await threads.run(ROOT, secret.read_text) == "x"
        threads.close()

    asyncio.run(main())


def test_without_root_only_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights.os, "geteuid", lambda: 1000)
    with rights_of(User("me", 1000, 1000, (1000,), "/", "/bin/sh")):
        pass
    with pytest.raises(Denied), rights_of(NOBODY):
        pass
