"""A pause that finds the host's disk full, at each of its writes: the sandbox runs on, and loses nothing.

The agent's data directory is a tmpfs that has no room but what the test gives it: a page more, or a file more, each
time. So each page and each file that a pause writes is once the first for which there is no room.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.platform.hostagent.conftest import Agent, Client, clean, connected, stop, vmm_pid
from tests.small_disk import SmallDisk, small_disk
from wrenn_sandbox.core.errors import Exhausted
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.vmm import keeper, ram

pytestmark = [pytest.mark.platform, pytest.mark.skipif(os.geteuid() != 0, reason="a mount needs root")]

PAGE = 4096
#: Where a sandbox's marks in memory are, and how many pages they take.
FIRST_PAGE, MARKED_PAGES = 77, 3
NO_FLOOR = ("--min-disk-mib", "0", "--min-disk-fraction", "0")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small") as made:
        yield made


@pytest.fixture
def small_agent(disk: SmallDisk, start_agent: Callable[..., Agent], tmp_path: Path) -> Iterator[Agent]:
    """An agent on that disk, which keeps its log elsewhere."""
    (disk.path / "agent.log").symlink_to(tmp_path / "agent.log")
    with clean(disk.path):
        running = start_agent(*NO_FLOOR, data_dir=disk.path)
        try:
            yield running
        finally:
            code = stop(running)
        assert code == 0, running.log()


@dataclass(frozen=True)
class Marked:
    """A running sandbox with marks in its memory and on its disk, which must not be lost."""

    client: Client
    id: str

    @property
    def overlay(self) -> Path:
        return self.client.agent.data_dir / "run" / self.id / "disk.qcow2"

    def mark(self, text: bytes) -> None:
        with self.memory() as (fd, at):
            os.pwrite(fd, _pattern(text), at)
        with self.overlay.open("ab") as layer:
            layer.write(text)

    @contextmanager
    def memory(self) -> Iterator[tuple[int, int]]:
        """Its keeper's memory, and where in it the marks are."""
        record = journal.read(self.overlay.parent)
        assert record is not None
        where = ram.locate(keeper.parent(vmm_pid(self.client.agent, self.id)), record.memory)
        with Path(f"/proc/{where.pid}/mem").open("r+b", buffering=0) as file:
            yield file.fileno(), where.address + FIRST_PAGE * PAGE

    async def require(self, *marks: bytes) -> None:
        """It runs; its memory has the last mark, and the layers of its disk one each, the lowest the first."""
        assert (await self.client.listed())[self.id].status == "running"
        assert (await self.client.exec(self.id, "echo", "alive")).stdout == b"alive\n"
        with self.memory() as (fd, at):
            assert os.pread(fd, MARKED_PAGES * PAGE, at) == _pattern(marks[-1])
        made = (await self.client.builds()).values()
        below = [each.build_id for each in sorted(made, key=lambda each: each.created_at_unix)]
        layers = [self.client.agent.data_dir / "builds" / build_id / "disk.qcow2" for build_id in below]
        assert [
            path.read_bytes()[-len(mark) :] for path, mark in zip([*layers, self.overlay], marks, strict=False)
        ] == [*marks]


def _pattern(text: bytes) -> bytes:
    return (text * PAGE)[: MARKED_PAGES * PAGE]


async def until_there_is_room(disk: SmallDisk, sandbox: Marked, kind: str, *marks: bytes) -> int:
    """Pause with ever more room; how often that failed. After each failure the sandbox runs on with all its marks."""
    builds = disk.path / "builds"
    before = sorted(path.name for path in builds.iterdir())
    for room in range(1000):
        disk.leave(**{kind: room})
        try:
            await sandbox.client.pause(sandbox.id)
        except Exhausted as error:
            assert error.slug == "host_disk_full"
        else:
            return room
        assert sorted(path.name for path in builds.iterdir()) == before, f"room for {room} {kind}"
        await sandbox.require(*marks)
    raise AssertionError("never enough room")


def written(build: Path, kind: str) -> int:
    """Pages, or files, that a pause into ``build`` wrote: all of that but the pages of its disk, and a hold."""
    if kind == "files":
        return len([build, *build.iterdir()]) + 1
    sizes = [path.stat().st_blocks * 512 for path in build.iterdir() if path.name != "disk.qcow2"]
    return sum(sizes) // PAGE + 1


@pytest.mark.parametrize("kind", ["pages", "files"])
def test_a_pause_without_room_for_one_of_its_writes_leaves_the_sandbox_running(
    disk: SmallDisk, small_agent: Agent, kind: str
) -> None:
    async def scene() -> None:
        async with asyncio.timeout(120), connected(small_agent) as client, client.sandbox() as sandbox_id:
            sandbox, marks = Marked(client, sandbox_id), []
            for mark in (b"first mark", b"second mark"):  # the second time, the sandbox holds a build already
                marks.append(mark)
                sandbox.mark(mark)
                failures = await until_there_is_room(disk, sandbox, kind, *marks)
                disk.leave()
                (made,) = [each for each in (await client.builds()).values() if sandbox_id in each.holders]
                # Each round had room for one more: nothing was written that was not once the first to find none.
                assert failures == written(disk.path / "builds" / made.build_id, kind)
                await client.resume(sandbox_id, made.build_id)
            await sandbox.require(*marks)

    asyncio.run(scene())


def test_a_log_on_the_full_disk_costs_no_sandbox(disk: SmallDisk, start_agent: Callable[..., Agent]) -> None:
    async def scene(agent: Agent) -> None:
        async with asyncio.timeout(60), connected(agent) as client, client.sandbox() as sandbox_id:
            sandbox = Marked(client, sandbox_id)
            sandbox.mark(b"mark")
            disk.leave(pages=0)
            said = agent.log()
            while len(agent.log()) % PAGE or len(agent.log()) == len(said):  # the last page of the log is full
                with pytest.raises(Exhausted):
                    await client.pause(sandbox_id)
                await sandbox.require(b"mark")
            for _ in range(5):
                with pytest.raises(Exhausted):
                    await client.pause(sandbox_id)
                await sandbox.require(b"mark")
            disk.leave()
            build = await client.pause(sandbox_id)
            await client.resume(sandbox_id, build.build_id)
            await sandbox.require(b"mark")

    with clean(disk.path):
        agent = start_agent(*NO_FLOOR, data_dir=disk.path)
        try:
            asyncio.run(scene(agent))
        finally:
            code = stop(agent)
    assert code == 0
