"""Real processes: watched, killed and reaped, ours or not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.drivers import traces
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.vmm.process import UNKNOWN_CODE, Identity, become_subreaper, identify, lives, start, watch

pytestmark = pytest.mark.platform

_SLEEP = ("/bin/sleep", "1000")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = traces()
    yield
    assert traces() - before == set()


def _start(*argv: str, fds: dict[int, int] | None = None) -> int:
    return start(argv, fds=fds or {}, env={})


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -TERM $$", -15), ("true", 0)])
def test_everybody_learns_the_code(script: str, code: int) -> None:
    async def main() -> None:
        async with watch(_start("/bin/sh", "-c", script)) as process, asyncio.TaskGroup() as group:
            waiting = [group.create_task(process.wait()) for _ in range(3)]
        assert {task.result() for task in waiting} == {code}
        assert process.code == code

    asyncio.run(main())


def test_leaving_kills_and_reaps() -> None:
    async def main() -> None:
        async with watch(_start(*_SLEEP)) as process:
            assert process.code is None
        assert process.code == -signal.SIGKILL
        assert not Path(f"/proc/{process.pid}").exists()

    asyncio.run(main())


def test_who_is_spared_lives_on() -> None:
    async def main() -> None:
        pid = _start(*_SLEEP)
        async with watch(pid, spared=True) as process:
            assert process.code is None
        assert lives(process.identity)
        async with watch(pid, process.identity, spared=True) as process:
            process.spared = False
        assert not lives(process.identity)

    asyncio.run(main())


def test_the_dead_do_not_live_while_nobody_has_reaped_them() -> None:
    with subprocess.Popen(("/bin/true",)) as child:
        identity = identify(child.pid)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert identify(child.pid) == identity and not lives(identity)


def test_a_cancel_while_it_dies_comes_after_its_death() -> None:
    async def main() -> None:
        held: list[int] = []

        async def holding() -> None:
            async with watch(_start(*_SLEEP)) as process:
                held.append(process.pid)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(holding())
            await asyncio.sleep(0)
            task.cancel()
        assert not Path(f"/proc/{held[0]}").exists()

    asyncio.run(main())


def test_a_child_has_its_own_session_and_only_the_descriptors_it_was_given() -> None:
    async def main() -> None:
        read, write = os.pipe()
        try:
            async with watch(_start("/bin/ls", "-l", "/proc/self/fd", fds={1: write, 7: write})) as process:
                await process.wait()
            listed = os.read(read, 65536).decode().splitlines()
            pipe = f"pipe:[{os.fstat(read).st_ino}]"
        finally:
            os.close(read)
            os.close(write)
        assert {line.split()[8] for line in listed if pipe in line} == {"1", "7"}  # neither end by another number
        async with watch(_start(*_SLEEP)) as process:
            assert os.getsid(process.pid) == process.pid
            assert {Path(f"/proc/{process.pid}/fd/{n}").readlink() for n in (0, 1, 2)} == {Path(os.devnull)}

    asyncio.run(main())


def test_the_body_ends_with_the_process_that_it_needs() -> None:
    async def main() -> None:
        async with watch(_start("/bin/sh", "-c", "exit 3")) as process:
            with pytest.raises(Unavailable) as caught:
                async with process.required():
                    await asyncio.Event().wait()
            assert caught.value.slug == "vmm_gone"

    asyncio.run(main())


def test_a_stranger_is_watched_too() -> None:
    async def main() -> None:
        script = (
            "import subprocess,sys,time; p=subprocess.Popen(['/bin/sleep','1000']); print(p.pid,flush=True); p.wait()"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            async with watch(pid, identify(pid)) as process:
                pass
            assert process.code == UNKNOWN_CODE

    asyncio.run(main())


def test_an_orphan_becomes_ours_to_reap() -> None:
    async def main() -> None:
        become_subreaper()
        script = "import subprocess; print(subprocess.Popen(['/bin/sleep','1000'],stdout=subprocess.DEVNULL).pid)"
        pid = int(subprocess.check_output([sys.executable, "-c", script], text=True))
        async with watch(pid) as process:
            os.kill(pid, signal.SIGTERM)
            assert await process.wait() == -signal.SIGTERM

    asyncio.run(main())


def test_nobody_is_taken_for_another() -> None:
    async def main() -> None:
        async with watch(_start(*_SLEEP)) as process:
            with pytest.raises(NotFound):
                async with watch(process.pid, Identity(process.pid, 1)):
                    pass
            assert process.code is None
        with pytest.raises(NotFound) as caught:
            async with watch(process.pid):
                pass
        assert caught.value.slug == "vmm_gone"

    asyncio.run(main())
