"""What the agent's side of a launch does with the messages of the jail."""

from __future__ import annotations

import asyncio
import socket

import pytest

from wrenn_sandbox.vmm.launch import received

pytestmark = pytest.mark.platform


def test_a_cancelled_caller_takes_no_message_along() -> None:
    async def main() -> bytes:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.setblocking(False)
            waiting = asyncio.create_task(received(ours))
            await asyncio.sleep(0)
            theirs.send(b"4711")
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # now the loop has seen the message, and the task has not run since
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return ours.recv(64)

    assert asyncio.run(main()) == b"4711"


def test_a_message_and_an_end_are_received() -> None:
    async def main() -> list[bytes]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                theirs.send(b"1")
                found = [await received(ours)]
            return [*found, await received(ours)]

    assert asyncio.run(main()) == [b"1", b""]
