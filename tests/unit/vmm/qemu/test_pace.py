from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.vmm.qemu import pace
from wrenn_sandbox.vmm.qemu.pace import Pace


class _Qemu:
    """Stops at a write while the disk is full, as QEMU does; ``refusals`` of ``cont`` fail first."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.runs, self.full, self.writes = True, False, False
        self.refusals: list[Unavailable] = []
        self.action = "stop"
        self._listeners: list[asyncio.Queue[object]] = []

    async def execute(self, command: str, **_: object) -> object:
        self.commands.append(command)
        if command == "cont" and self.refusals:
            raise self.refusals.pop(0)
        self.runs = command == "cont"
        if self.runs and self.writes:
            self.write()
        return {}

    def write(self) -> None:
        self.writes = self.full
        if self.full:
            self.runs = False
            for listener in self._listeners:
                listener.put_nowait({"event": "BLOCK_IO_ERROR", "data": {"action": self.action}})

    @contextmanager
    def listening_for(self, event: str) -> Iterator[asyncio.Queue[object]]:
        assert event == "BLOCK_IO_ERROR"
        self._listeners.append(asyncio.Queue())
        try:
            yield self._listeners[-1]
        finally:
            self._listeners.pop()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "AGAIN_S", 0)


def _scene(work: Callable[[_Qemu, Pace], Awaitable[None]], *, held: bool = False) -> _Qemu:
    async def main() -> _Qemu:
        qemu = _Qemu()
        here = Pace("sb-1", qemu, held=held)
        async with asyncio.timeout(5), here.kept():
            await _turns()
            await work(qemu, here)
        return qemu

    return asyncio.run(main())


async def _turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def test_it_goes_on_as_soon_as_there_is_room_and_not_before() -> None:
    async def work(qemu: _Qemu, here: Pace) -> None:
        assert not here.lacks_room
        qemu.full = True
        qemu.write()
        await _turns()
        assert not qemu.runs and qemu.commands.count("cont") > 1 and here.lacks_room
        qemu.full = False
        await _turns()
        assert qemu.runs and not qemu.writes and not here.lacks_room
        tried = len(qemu.commands)
        await _turns()
        assert len(qemu.commands) == tried

    _scene(work)


def test_a_failure_that_the_guest_is_told_is_no_want_of_room() -> None:
    async def work(qemu: _Qemu, here: Pace) -> None:
        qemu.full, qemu.action = True, "report"
        qemu.write()
        await _turns()
        assert not here.lacks_room

    _scene(work)


def test_nobody_lets_a_held_machine_go_on() -> None:
    async def work(qemu: _Qemu, here: Pace) -> None:
        qemu.full = True
        qemu.write()
        await here.stop()
        await _turns()
        qemu.full = False
        before = list(qemu.commands)
        await _turns()
        assert not qemu.runs and qemu.commands == before
        await here.go()
        assert qemu.runs

    _scene(work)


def test_one_that_is_taken_over_is_held_until_it_is_let_go() -> None:
    async def work(qemu: _Qemu, here: Pace) -> None:
        qemu.full = True
        qemu.write()
        await _turns()
        assert qemu.commands == []
        await here.go()
        await _turns()
        qemu.full = False
        await _turns()
        assert qemu.runs

    _scene(work, held=True)


def test_a_command_that_fails_is_tried_again_unless_the_machine_has_ended() -> None:
    async def work(qemu: _Qemu, _: Pace) -> None:
        qemu.refusals = [Unavailable("busy", slug="vmm_unresponsive"), Unavailable("gone", slug="vmm_gone")]
        qemu.full = True
        qemu.write()
        await _turns()
        assert qemu.commands == ["cont", "cont"]

    _scene(work)


def test_an_error_of_the_body_comes_out_as_it_is() -> None:
    async def work(_qemu: _Qemu, _: Pace) -> None:
        raise Unavailable("the body's", slug="its_own")

    with pytest.raises(Unavailable, match="the body's"):
        _scene(work)
