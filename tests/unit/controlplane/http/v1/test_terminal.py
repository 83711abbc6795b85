from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wrenn_sandbox.controlplane.http.v1.terminal import Input, _Session
from wrenn_sandbox.controlplane.usecases.attach_terminal import Size
from wrenn_sandbox.core.errors import Invalid


class Recorded:
    """A terminal that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[bytes | Size] = []

    async def type(self, data: bytes) -> None:
        self.got.append(data)

    async def resize(self, size: Size) -> None:
        self.got.append(size)


def written(items: list[bytes | Size], *, limit: int | None = None) -> list[bytes | Size]:
    """What reaches the terminal of items that wait in the queue."""

    async def main() -> list[bytes | Size]:
        terminal = Recorded()
        session = _Session(None, terminal)  # type: ignore[arg-type]
        session.attached.set()
        writing: list[Any] = []
        async with asyncio.TaskGroup() as group:
            writing.append(group.create_task(session.write()))
            for item in items:
                await session._queue.put(item)
            while not session._queue.empty():
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            writing[0].cancel()
        return terminal.got

    return asyncio.run(main())


def test_inputs_travel_together_and_sizes_keep_their_place() -> None:
    got = written([b"a", b"b", Size(1, 2), b"c", Size(3, 4), Size(5, 6), b"d"])
    assert got == [b"ab", Size(1, 2), b"c", Size(3, 4), Size(5, 6), b"d"]


def test_long_inputs_are_not_put_together_without_end() -> None:
    got = written([b"x" * 40_000] * 3)
    assert [len(item) for item in got if isinstance(item, bytes)] == [40_000] * 3


def test_more_than_the_queue_holds_waits() -> None:
    got = written([b"%d," % n for n in range(500)])
    assert b"".join(item for item in got if isinstance(item, bytes)) == b"".join(b"%d," % n for n in range(500))


def test_input_must_be_base64() -> None:
    assert Input(type="input", data="/w==").raw() == b"\xff"
    with pytest.raises(Invalid):
        Input(type="input", data="%").raw()
