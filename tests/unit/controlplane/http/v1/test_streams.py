from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protobuf import Oneof

from wrenn_sandbox.controlplane.http.v1.streams import Output
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


class Recorded:
    """A socket that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    async def send(self, **message: Any) -> None:
        self.sent.append(message)


def event(kind: str, value: Any) -> pb.ExecStreamResponse:
    return pb.ExecStreamResponse(event=Oneof(kind, value))


def data(name: str, value: bytes) -> pb.ExecStreamResponse:
    return event("data", pb.ExecStreamData(output=Oneof(name, value)))


async def stream(*events: pb.ExecStreamResponse) -> AsyncGenerator[pb.ExecStreamResponse, None]:
    for item in events:
        yield item


def relayed(*events: pb.ExecStreamResponse, encoding: Any = "utf-8") -> tuple[Output, list[dict[str, Any]]]:
    socket = Recorded()
    output = Output(socket, encoding)  # type: ignore[arg-type]
    asyncio.run(output.relay(stream(*events)))
    return output, socket.sent


END = event("end", pb.ExecStreamEnd(exit_code=3, error="why"))


def test_events_become_messages() -> None:
    output, sent = relayed(event("start", pb.ExecStreamStart(pid=7)), data("stderr", b"e"), END)
    assert output.pid == 7
    assert sent == [
        {"type": "start", "pid": 7},
        {"type": "stderr", "data": "e"},
        {"type": "exit", "exit_code": 3, "reason": "why"},
    ]


@settings(max_examples=40)
@given(text=st.text(max_size=20), cuts=st.lists(st.integers(0, 80), max_size=6))
def test_characters_survive_being_cut(text: str, cuts: list[int]) -> None:
    raw = text.encode()
    borders = sorted({0, len(raw), *(c for c in cuts if c < len(raw))})
    pieces = [data("stdout", raw[a:b]) for a, b in pairwise(borders)]
    _, sent = relayed(*pieces, END)
    assert "".join(m["data"] for m in sent if m["type"] == "stdout") == text


def test_half_a_character_at_the_end_is_not_swallowed() -> None:
    _, sent = relayed(data("stdout", b"a\xc3"), END)
    assert "".join(m["data"] for m in sent if m["type"] == "stdout") == "a�"


def test_base64_is_exact() -> None:
    _, sent = relayed(data("stdout", b"\xff\x00"), END, encoding="base64")
    assert sent[0] == {"type": "stdout", "data": "/wA="}


def test_a_stream_without_an_end_is_an_error() -> None:
    with pytest.raises(Unavailable) as caught:
        relayed(data("stdout", b"a"))
    assert caught.value.slug == "stream_broken"
