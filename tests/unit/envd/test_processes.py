"""The table, over processes that are pipes. With real processes: tests/platform/envd."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from tests.unit.envd.process_stand_in import Kernel, descriptors
from wrenn_sandbox.envd import processes, shim
from wrenn_sandbox.envd.cgroups import Cgroups
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.output import OutputLog
from wrenn_sandbox.envd.processes import ProcessTable, Program
from wrenn_sandbox.envd.pty import Size
from wrenn_sandbox.envd.users import User

USER = User("root", 0, 0, (0,), "/root", "/bin/sh")


class World:
    """A table whose processes only hold what was handed to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = Kernel(monkeypatch)
        self.context = GuestContext(is_guest=False)
        self.launches: list[shim.Launch] = []
        self.refusal: ConnectError | None = None
        self.next_pid = 100
        monkeypatch.setattr(shim, "spawn", self._spawn)

    def _spawn(self, context: GuestContext, launch: shim.Launch) -> int:
        if self.refusal is not None:
            raise self.refusal
        self.launches.append(launch)
        self.next_pid += 1
        return self.next_pid

    def run(self, work: Callable[[ProcessTable], Awaitable[None]]) -> None:
        async def play() -> None:
            async with asyncio.timeout(5), ProcessTable(self.context) as table:
                await work(table)

        before = descriptors()
        asyncio.run(play())
        assert descriptors() == before


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(processes, "REAP_S", 0.0)
    made = World(monkeypatch)
    yield made
    made.kernel.close()


def program(*, tag: str | None = None, terminal: Size | None = None, stdin: bool = False) -> Program:
    return Program((b"true",), {}, USER, "/", terminal, stdin, tag)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def end(world: World, pid: int, code: int = 0) -> None:
    world.kernel.exit(code, pid=pid)
    await turns()


def test_found_by_pid_and_by_tag_running_and_ended(world: World) -> None:
    async def work(table: ProcessTable) -> None:
        first = table.start(program(tag="a"), "label")
        assert list(table.live()) == [(first, "a", "label")]
        assert table.by_pid(101) is table.by_tag("a") is first
        with pytest.raises(ConnectError) as caught:
            table.start(program(tag="a"), None)
        assert caught.value.code == Code.ALREADY_EXISTS
        await end(world, 101, 4)
        assert list(table.live()) == []
        assert table.by_pid(101) is table.by_tag("a") is first
        assert first.ending is not None and first.ending.exit_code == 4
        second = table.start(program(tag="a"), None)
        assert table.by_tag("a") is second
        await end(world, 102)
        assert table.by_tag("a") is second

    world.run(work)


@pytest.mark.parametrize("find", [lambda t: t.by_pid(1), lambda t: t.by_tag("x")])
def test_unknown(world: World, find: Callable[[ProcessTable], object]) -> None:
    async def work(table: ProcessTable) -> None:
        with pytest.raises(ConnectError) as caught:
            find(table)
        assert caught.value.code == Code.NOT_FOUND

    world.run(work)


def test_ends_are_forgotten_after_their_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "KEEP_ENDED_S", 0.0)

    async def work(table: ProcessTable) -> None:
        table.start(program(), None)
        await end(world, 101)
        await turns()
        with pytest.raises(ConnectError):
            table.by_pid(101)

    world.run(work)


def test_a_pid_used_again_names_the_new_process(world: World) -> None:
    async def work(table: ProcessTable) -> None:
        table.start(program(), None)
        await end(world, 101)
        world.next_pid = 100
        again = table.start(program(), None)
        assert table.by_pid(101) is again
        await end(world, 101)

    world.run(work)


def test_only_the_last_tails_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "KEEP_TAILS", 1)
    forgotten: list[OutputLog] = []

    def forget_tail(log: OutputLog) -> None:
        forgotten.append(log)

    monkeypatch.setattr(OutputLog, "forget_tail", forget_tail)

    async def work(table: ProcessTable) -> None:
        started = [table.start(program(), None) for _ in range(3)]
        for process in started:
            await end(world, process.pid)
        assert forgotten == [started[0].log, started[1].log]

    world.run(work)


def test_where_a_process_is_put(world: World) -> None:
    world.context.cgroups = Cgroups(Path("/cg"))

    async def work(table: ProcessTable) -> None:
        table.start(program(), None)
        table.start(program(terminal=Size(80, 24)), None)
        await end(world, 101)
        await end(world, 102)

    world.run(work)
    plain, terminal = world.launches
    assert (plain.terminal, plain.cgroup_procs) == (False, Path("/cg/user/cgroup.procs"))
    assert (terminal.terminal, terminal.cgroup_procs) == (True, Path("/cg/ptys/cgroup.procs"))
    assert len(set(terminal.fds)) == 1


def test_a_refused_start_leaves_no_descriptor(world: World) -> None:
    world.refusal = ConnectError(Code.RESOURCE_EXHAUSTED, "no")

    async def work(table: ProcessTable) -> None:
        for request in (program(stdin=True), program(terminal=Size(1, 1))):
            before = descriptors()
            with pytest.raises(ConnectError):
                table.start(request, None)
            assert descriptors() == before

    world.run(work)


def test_a_process_that_cannot_be_watched_is_not_left_running(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    def pidfd_open(pid: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(processes.os, "pidfd_open", pidfd_open)
    monkeypatch.setattr(processes.os, "waitpid", lambda pid, _: waited.append(pid))

    async def work(table: ProcessTable) -> None:
        with pytest.raises(ConnectError) as caught:
            table.start(program(stdin=True), None)
        assert caught.value.code == Code.RESOURCE_EXHAUSTED
        assert list(table.live()) == []

    world.run(work)
    assert (world.kernel.signals, waited) == ([(101, 9)], [101])


def test_leaving_kills_and_lets_nothing_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "REAP_S", 5.0)
    tables: list[ProcessTable] = []

    async def work(table: ProcessTable) -> None:
        tables.append(table)
        table.start(program(stdin=True), None)
        asyncio.get_running_loop().call_soon(partial(world.kernel.exit, 9, how=os.CLD_KILLED, pid=101))

    world.run(work)
    assert world.kernel.signals == [(101, 9)]
    with pytest.raises(ConnectError) as caught:
        tables[0].start(program(), None)
    assert caught.value.code == Code.UNAVAILABLE
