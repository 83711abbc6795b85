"""The states of a process, over pipes in the test's hands. With real processes: tests/platform/envd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest

from tests.unit.envd.process_stand_in import PID, Kernel, output_pipe
from wrenn_sandbox.envd import process as process_module
from wrenn_sandbox.envd.ending import Ending
from wrenn_sandbox.envd.output import WINDOW_BYTES, Cursor, Source
from wrenn_sandbox.envd.process import Descriptors, Process


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel(monkeypatch)
    yield made
    made.close()


class Stage:
    """One process with both outputs, its ends recorded."""

    def __init__(self) -> None:
        self.ended: list[Process] = []
        (stdout, self.stdout), (stderr, self.stderr) = output_pipe(), output_pipe()
        self.process = Process(PID, Descriptors(stdout=stdout, stderr=stderr), self.ended.append)

    def close(self) -> None:
        """The last holder of the pipes closes them."""
        os.close(self.stdout)
        os.close(self.stderr)

    def read(self, cursor: Cursor) -> list[tuple[Source, bytes]]:
        found = []
        while (chunk := self.process.next(cursor)) is not None:
            found.append((chunk.source, chunk.data))
        return found


async def turns(count: int = 20) -> None:
    """Let the loop run its callbacks."""
    for _ in range(count):
        await asyncio.sleep(0)


def on_stage(work: Callable[[Stage], Awaitable[None]]) -> None:
    async def play() -> None:
        stage = Stage()
        try:
            async with asyncio.timeout(5):
                await work(stage)
        finally:
            stage.process.abandon()

    asyncio.run(play())


def test_output_then_the_end(kernel: Kernel) -> None:
    async def work(stage: Stage) -> None:
        cursor = stage.process.attach(lambda: None)
        os.write(stage.stdout, b"out")
        await turns()
        os.write(stage.stderr, b"err")
        stage.close()
        await turns()
        assert stage.process.ending is None
        kernel.exit(3)
        await turns()
        assert stage.process.ending == Ending(3, True, "exit status 3")
        assert stage.ended == [stage.process]
        assert stage.read(cursor) == [(Source.STDOUT, b"out"), (Source.STDERR, b"err")]
        assert not stage.process.leaves_something

    on_stage(work)


def test_an_exit_that_somebody_else_took_is_no_success(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def waitid(*_: int) -> None:
        raise ChildProcessError

    async def work(stage: Stage) -> None:
        stage.close()
        kernel.exit(0)
        monkeypatch.setattr(process_module.os, "waitid", waitid)
        await turns()
        assert stage.process.ending == Ending(-1, False, "exit status unknown")

    on_stage(work)


def test_the_exit_alone_is_not_the_end(kernel: Kernel) -> None:
    async def work(stage: Stage) -> None:
        cursor = stage.process.attach(lambda: None)
        kernel.exit(0)
        await turns()
        assert stage.process.ending is None  # somebody else holds the pipes
        os.write(stage.stdout, b"late")
        await turns()
        stage.process.stop_lingering()
        assert stage.process.ending == Ending(0, True, "exit status 0")
        assert stage.read(cursor) == [(Source.STDOUT, b"late")]
        os.write(stage.stdout, b"too late, but not in the writer's way")
        await turns()
        assert stage.read(cursor) == []
        assert stage.process.leaves_something
        stage.close()
        await turns()
        assert not stage.process.leaves_something

    on_stage(work)


def test_lingering_never_cuts_what_was_written_before_the_exit(kernel: Kernel) -> None:
    async def work(stage: Stage) -> None:
        cursor = stage.process.attach(lambda: None)
        written = 0
        os.set_blocking(stage.stdout, False)
        while not stage.process.log.full:
            written += os.write(stage.stdout, b"x" * 32768)
            await turns(2)
        written += os.write(stage.stdout, b"y" * 32768)  # stays in the pipe: the stream reads nothing
        kernel.exit(0)
        await turns()
        stage.process.stop_lingering()
        assert stage.process.ending is None
        got = 0
        while stage.process.ending is None:
            got += sum(len(data) for _, data in stage.read(cursor))
            await turns(1)
        got += sum(len(data) for _, data in stage.read(cursor))
        assert got == written
        stage.close()

    on_stage(work)


def test_a_full_log_stops_the_reading_and_a_reader_starts_it_again(kernel: Kernel) -> None:
    async def work(stage: Stage) -> None:
        cursor = stage.process.attach(lambda: None)
        os.set_blocking(stage.stdout, False)
        with pytest.raises(BlockingIOError):
            for _ in range(10_000):
                os.write(stage.stdout, b"x" * 4096)
                await turns(1)
        assert stage.process.log.unread <= WINDOW_BYTES + 33 * 1024
        stage.read(cursor)
        await turns()
        os.write(stage.stdout, b"again")
        stage.process.detach(cursor)
        stage.close()

    on_stage(work)


def test_a_reader_that_stands_still_is_cut(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "STALL_S", 0)

    async def work(stage: Stage) -> None:
        told: list[int] = []
        cursor = stage.process.attach(lambda: told.append(1))
        os.set_blocking(stage.stdout, False)
        while not cursor.cut:
            with suppress(BlockingIOError):
                os.write(stage.stdout, b"x" * 4096)
            await turns(1)
        assert told and stage.process.next(cursor) is None
        stage.close()

    on_stage(work)


def test_time_is_up(kernel: Kernel) -> None:
    async def work(stage: Stage) -> None:
        stage.process.expire_at(0)
        await turns()
        stage.process.expire()
        assert stage.process.expired
        assert kernel.signals == [(PID, 9)]
        stage.close()
        kernel.exit(9, how=os.CLD_KILLED)
        await turns()
        assert stage.process.ending == Ending(-1, False, "signal: killed")

    on_stage(work)


def test_who_ended_in_time_does_not_expire(kernel: Kernel) -> None:
    async def work(stage: Stage) -> None:
        stage.close()
        kernel.exit(0)
        await turns()
        stage.process.expire()
        assert not stage.process.expired and kernel.signals == []

    on_stage(work)


def test_signals_go_to_the_group(kernel: Kernel) -> None:
    async def work(stage: Stage) -> None:
        stage.process.signal(15)
        assert kernel.signals == [(PID, 15)]
        stage.close()

    on_stage(work)


def test_giving_up_kills_and_closes(kernel: Kernel) -> None:
    async def work(stage: Stage) -> None:
        stage.process.abandon()
        assert kernel.signals == [(PID, 9)]
        with pytest.raises(BrokenPipeError):
            os.write(stage.stdout, b"x")
        kernel.exit(9, how=os.CLD_KILLED)
        await turns()
        assert stage.ended == [stage.process]
        stage.close()

    on_stage(work)
