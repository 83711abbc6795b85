"""What the terminal makes of each message of the sandbox."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from wrenn_sandbox.cli import terminal
from wrenn_sandbox.core.errors import Unavailable


class _Socket:
    def __init__(self, *messages: dict[str, object]) -> None:
        self.messages = [SimpleNamespace(data=json.dumps(m)) for m in messages]

    async def __aiter__(self):
        for message in self.messages:
            yield message


def _receive(*messages: dict[str, object]) -> int:
    return asyncio.run(terminal._receive(_Socket(*messages)))


def test_output_is_bytes_and_exit_ends_it(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    code = _receive(
        {"type": "started", "tag": "t"}, {"type": "output", "data": "/w=="}, {"type": "exit", "exit_code": 4}
    )
    assert code == 4
    assert capsysbinary.readouterr().out == b"\xff"


def test_unknown_messages_are_tolerated() -> None:
    assert _receive({"type": "ping"}, {"type": "news"}, {"type": "exit", "exit_code": 0}) == 0


@pytest.mark.parametrize("messages", [[], [{"type": "error", "data": "no bash"}]])
def test_a_lost_terminal_is_an_error(messages: list[dict[str, object]]) -> None:
    with pytest.raises(Unavailable) as caught:
        _receive(*messages)
    assert caught.value.slug == "terminal_lost"
