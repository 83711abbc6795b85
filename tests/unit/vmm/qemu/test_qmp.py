from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from qemu.qmp import EventListener, ExecInterruptedError, Message, QMPClient
from qemu.qmp.models import ErrorResponse
from qemu.qmp.qmp_client import ExecuteError

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.vmm.qemu import qmp


class _Client:
    """Answers as it is told."""

    def __init__(self, answer: Callable[[], Awaitable[object]]) -> None:
        self.events = EventListener()
        self.sent: list[tuple[str, object]] = []
        self._answer = answer

    async def execute(self, command: str, arguments: object) -> object:
        self.sent.append((command, arguments))
        return await self._answer()


def _raising(error: Exception) -> Callable[[], Awaitable[object]]:
    async def answer() -> object:
        raise error

    return answer


def _execute(answer: Callable[[], Awaitable[object]]) -> _Client:
    client = _Client(answer)

    async def main() -> None:
        monitor = qmp.Monitor("sb-1", cast(QMPClient, client), None)  # type: ignore[arg-type]
        await monitor.execute("add-fd", fdset_id=2)

    asyncio.run(main())
    return client


async def _done() -> object:
    return {}


def test_descriptors_go_beside_their_command() -> None:
    client = _Client(lambda: _answer({"fdset-id": 5, "fd": 31}))
    ours, theirs = socket.socketpair()

    async def main() -> int:
        return await qmp.Monitor("sb-1", cast(QMPClient, client), ours).add_fd(ours.fileno(), 5, "label")

    with ours, theirs:
        assert asyncio.run(main()) == 31
        data, fds, _, _ = socket.recv_fds(theirs, 16, 4)
        for fd in fds:
            os.close(fd)
    assert (data, len(fds)) == (b" ", 1)  # white space between two commands
    assert client.sent == [("add-fd", {"fdset-id": 5, "opaque": "label"})]


def test_no_fdset_is_used_twice() -> None:
    sets = [
        {"fdset-id": 7, "fds": [{"fd": 31, "opaque": "a"}, {"fd": 32, "opaque": "b"}]},
        {"fdset-id": 1, "fds": [{"fd": 7}]},
    ]

    async def main() -> None:
        monitor = qmp.Monitor("sb-1", cast(QMPClient, _Client(lambda: _answer(sets))), None)  # type: ignore[arg-type]
        assert [monitor.new_fdset(), monitor.new_fdset()] == [2, 3]
        assert await monitor.fdsets() == {7: {"a": 31, "b": 32}, 1: {"": 7}}
        assert monitor.new_fdset() == 8

    asyncio.run(main())


async def _answer(reply: object) -> object:
    return reply


def test_arguments_are_spelt_as_qemu_does() -> None:
    assert _execute(_done).sent == [("add-fd", {"fdset-id": 2})]


def test_a_refusal_quotes_qemu() -> None:
    reply = {"error": {"class": "GenericError", "desc": "File descriptor set not found"}, "id": "1"}
    error = ExecuteError(ErrorResponse(reply), Message({}), Message(reply))
    with pytest.raises(Unavailable, match="File descriptor set not found") as caught:
        _execute(_raising(error))
    assert caught.value.slug == "vmm_refused"


@pytest.mark.parametrize(
    "error", [ExecInterruptedError("x"), EOFError(), ConnectionResetError(), BrokenPipeError()], ids=repr
)
def test_a_lost_connection_is_a_machine_that_is_gone(error: Exception) -> None:
    with pytest.raises(Unavailable) as caught:
        _execute(_raising(error))
    assert caught.value.slug == "vmm_gone"


def test_silence_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "COMMAND_LIMIT_S", 0.001)

    async def never() -> object:
        return await asyncio.Event().wait()

    with pytest.raises(Unavailable, match=r"0\.001 s") as caught:
        _execute(never)
    assert caught.value.slug == "vmm_unresponsive"


def test_events_that_nobody_waits_for_are_not_kept() -> None:
    client = _execute(_done)
    asyncio.run(client.events.put(Message({"event": "RTC_CHANGE"})))
    assert client.events.empty()
    assert client.events.history == ()
