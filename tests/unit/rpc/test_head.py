"""Heads that grow without end are refused, over a transport that only remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
import uvicorn
from uvicorn.server import ServerState

from wrenn_sandbox.controlplane import __main__ as plane
from wrenn_sandbox.hostagent.agent import _Server
from wrenn_sandbox.rpc import head
from wrenn_sandbox.rpc.head import MAX_HEAD_BYTES, BoundedHttp


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the end"
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def feed(pieces: Iterable[bytes]) -> tuple[Transport, list[dict]]:
    """What a server answers to a client that sends ``pieces``, and the requests that its application saw."""
    seen: list[dict] = []
    transport = Transport()

    async def application(scope, receive, send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        seen.append({"headers": list(scope["headers"]), "body": body})
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        config = uvicorn.Config(application, http=BoundedHttp, lifespan="off", log_config=None)
        config.load()
        protocol = BoundedHttp(config=config, server_state=ServerState(), app_state={})
        protocol.connection_made(transport)
        for piece in pieces:
            protocol.data_received(piece)
            if transport.closed:
                break
        for _ in range(5):
            await asyncio.sleep(0)
        protocol._unset_keepalive_if_required()
        protocol._stop_waiting()

    asyncio.run(main())
    return transport, seen


LINE = b"GET / HTTP/1.1\r\nhost: a\r\n"
ENDLESS = [b"y" * 8192] * (MAX_HEAD_BYTES // 8192 + 2)


@pytest.mark.parametrize(
    "pieces",
    [
        [LINE, b"x: ", *ENDLESS],
        [LINE, *[b"x: " + piece + b"\r\n" for piece in ENDLESS]],
        [b"GET /", *ENDLESS],
        [LINE + b"x: " + b"y" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n"],
    ],
    ids=["one header", "many headers", "request line", "at once"],
)
def test_a_head_without_end_is_refused(pieces: list[bytes]) -> None:
    transport, seen = feed(pieces)
    assert transport.written.startswith(b"HTTP/1.1 431 ")
    assert transport.written.count(b"HTTP/1.1") == 1
    assert transport.closed
    assert seen == []


def test_what_fits_passes_and_every_request_counts_for_itself() -> None:
    one = LINE + b"x: " + b"y" * (MAX_HEAD_BYTES // 2) + b"\r\n\r\n"
    transport, seen = feed([one, one, one])
    assert [dict(request["headers"])[b"host"] for request in seen] == [b"a"] * 3
    assert transport.written.count(b"HTTP/1.1 204") == 3


def test_a_big_body_is_no_head() -> None:
    size = MAX_HEAD_BYTES * 3
    transport, seen = feed([b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size, b"b" * size])
    assert (len(seen[0]["body"]), transport.closed) == (size, False)


def test_trailers_are_dropped() -> None:
    head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    _, seen = feed([head, b"1\r\nb\r\n0\r\nx-api-key: late\r\n\r\n"])
    assert seen == [{"headers": [(b"host", b"a"), (b"transfer-encoding", b"chunked")], "body": b"b"}]


@pytest.mark.parametrize("before", [[], [LINE], [LINE + b"\r\n", LINE]], ids=["nothing", "a part", "the second"])
def test_a_head_that_does_not_end_in_time_is_refused(before: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HEAD_LIMIT_S", 0)
    transport, seen = feed(before)
    assert transport.written.endswith(head._TOO_SLOW)
    assert (transport.closed, len(seen)) == (True, len(before) // 2)


def test_a_head_that_came_in_time_is_waited_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HEAD_LIMIT_S", 0)
    transport, seen = feed([LINE + b"content-length: 5\r\n\r\n", b"he", b"llo"])
    assert (transport.closed, seen[0]["body"]) == (False, b"hello")


def test_nonsense_is_still_malformed() -> None:
    transport, seen = feed([b"what is this\r\n\r\n"])
    assert transport.written.startswith(b"HTTP/1.1 400 ") and seen == []


def test_both_listeners_have_the_bound() -> None:
    assert plane._config(None).http is BoundedHttp  # type: ignore[arg-type]
    assert _Server(None).config.http is BoundedHttp  # type: ignore[arg-type]


def test_a_message_that_one_hop_lets_through_the_other_does_too() -> None:
    assert plane._config(None).ws_max_size == _Server(None).config.ws_max_size  # type: ignore[arg-type]
