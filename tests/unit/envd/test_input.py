"""Writing to a pipe whose other end is in the test's hands."""

from __future__ import annotations

import asyncio
import os

import pytest

from wrenn_sandbox.envd.input import InputClosedError, InputPipe


def pipe() -> tuple[int, InputPipe]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    return reading, InputPipe(writing, owned=True)


def read_all(fd: int) -> bytes:
    data = b""
    while piece := os.read(fd, 1 << 20):
        data += piece
    os.close(fd)
    return data


def test_more_than_a_pipe_holds_arrives_whole_and_in_order() -> None:
    async def work() -> bytes:
        reading, pipe_in = pipe()
        pieces = [bytes([n]) * 100_000 for n in range(5)]
        got = bytearray()
        os.set_blocking(reading, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(reading, lambda: got.extend(os.read(reading, 1000)))
        async with asyncio.TaskGroup() as tasks:
            for piece in pieces:
                tasks.create_task(pipe_in.write(piece))
        loop.remove_reader(reading)
        pipe_in.close()
        os.set_blocking(reading, True)
        assert bytes(got) + read_all(reading) == b"".join(pieces)

    asyncio.run(work())


def test_closing_ends_waiting_and_later_writes() -> None:
    async def work() -> None:
        reading, pipe_in = pipe()

        async def write() -> None:
            with pytest.raises(InputClosedError):
                await pipe_in.write(b"x" * 1_000_000)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            tasks.create_task(write())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            pipe_in.close()
            pipe_in.close()
        with pytest.raises(InputClosedError):
            await pipe_in.write(b"")
        os.close(reading)

    asyncio.run(work())


def test_a_reader_that_is_gone() -> None:
    async def work() -> None:
        reading, pipe_in = pipe()
        os.close(reading)
        with pytest.raises(InputClosedError):
            await pipe_in.write(b"x")
        pipe_in.close()

    asyncio.run(work())


def test_a_write_given_up_lets_the_next_one_through() -> None:
    async def work() -> None:
        reading, pipe_in = pipe()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await pipe_in.write(b"x" * 1_000_000)
        os.read(reading, 1 << 20)
        await pipe_in.write(b"next")
        pipe_in.close()
        assert read_all(reading).endswith(b"next")

    asyncio.run(work())


def test_what_is_not_owned_stays_open() -> None:
    async def work() -> None:
        reading, writing = os.pipe()
        pipe_in = InputPipe(writing, owned=False)
        pipe_in.close()
        os.write(writing, b"open")
        os.close(writing)
        assert read_all(reading) == b"open"

    asyncio.run(work())
