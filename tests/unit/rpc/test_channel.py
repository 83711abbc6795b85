"""The Connect client over a scripted session: no sockets."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest

from wrenn_sandbox.core.errors import Bug, Exhausted, NotFound, Timeout, TooLarge, Unavailable, WrennError
from wrenn_sandbox.rpc import channel as module
from wrenn_sandbox.rpc.channel import Channel
from wrenn_sandbox.rpc.gen.envd import process_pb as pb
from wrenn_sandbox.rpc.gen.hostagent.v1.hostagent_pb import ErrorInfo


@dataclass
class Content:
    """Pieces of a body as they come from the network."""

    pieces: list[bytes]
    error: Exception | None = None

    async def iter_any(self):
        for piece in self.pieces:
            yield piece
        if self.error is not None:
            raise self.error


@dataclass
class Session:
    """Answers every post with the same thing, or fails to."""

    status: int = 200
    content: Content = field(default_factory=lambda: Content([]))
    error: Exception | None = None
    posts: list[dict] = field(default_factory=list)
    closed: int = 0

    @asynccontextmanager
    async def post(self, url: str, **options):
        self.posts.append({"url": url, **options})
        if self.error is not None:
            raise self.error
        try:
            yield self
        finally:
            self.closed += 1

    async def read(self) -> bytes:
        return b"".join(self.content.pieces)


def envelope(data: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(data).to_bytes(4, "big") + data


def message(pid: int) -> bytes:
    return pb.ListResponse(processes=[pb.ProcessInfo(pid=pid)]).to_binary()


END = envelope(b"{}", 2)


def channel(session: Session) -> Channel:
    return Channel(session, "http://h:1/", "process.Process", {"x-token": "t"})


def streamed(session: Session) -> list[int]:
    async def work() -> list[int]:
        async with channel(session).server_stream("Start", pb.ListRequest(), pb.ListResponse, timeout_s=2) as messages:
            return [m.processes[0].pid async for m in messages]

    return asyncio.run(work())


def unary(session: Session) -> pb.ListResponse:
    return asyncio.run(channel(session).unary("List", pb.ListRequest(), pb.ListResponse, timeout_s=1.5))


def test_unary_call() -> None:
    session = Session(content=Content([message(7)]))
    assert unary(session).processes[0].pid == 7
    (post,) = session.posts
    assert post["url"] == "http://h:1/process.Process/List"
    assert post["headers"] | {"x-token": "t", "content-type": "application/proto"} == post["headers"]
    assert post["headers"]["connect-timeout-ms"] == "1500" and post["headers"]["accept-encoding"] == "identity"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_stream_is_cut_anywhere(size: int) -> None:
    data = envelope(message(1)) + envelope(message(2)) + END
    session = Session(content=Content([data[i : i + size] for i in range(0, len(data), size)]))
    assert streamed(session) == [1, 2] and session.closed == 1


def test_a_stream_without_its_end_is_broken() -> None:
    with pytest.raises(Unavailable) as broken:
        streamed(Session(content=Content([envelope(message(1))])))
    assert broken.value.slug == "peer_broken"


def test_an_error_at_the_end_keeps_class_and_slug() -> None:
    info = b64encode(ErrorInfo(slug="host_full", retry_after_s=9).to_binary()).decode().rstrip("=")
    details = [{"type": "hostagent.v1.ErrorInfo", "value": info}]
    error = {"error": {"code": "resource_exhausted", "message": "no room", "details": details}}
    with pytest.raises(Exhausted) as full:
        streamed(Session(content=Content([envelope(message(1)), envelope(json.dumps(error).encode(), 2)])))
    assert (full.value.slug, full.value.retry_after_s, full.value.message) == ("host_full", 9, "no room")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b'{"code":"not_found","message":"gone"}', NotFound),
        (500, b'{"code":"strange","message":"x"}', Bug),
        (503, b"not json", Unavailable),
        (418, b"[]", Bug),
        (504, b'{"code":504,"message":"numbers are not Connect codes"}', Unavailable),
    ],
)
def test_unary_errors(status: int, body: bytes, kind: type[WrennError]) -> None:
    with pytest.raises(kind):
        unary(Session(status=status, content=Content([body])))
    with pytest.raises(kind):
        streamed(Session(status=status, content=Content([body])))


@pytest.mark.parametrize(
    ("error", "kind", "slug"),
    [
        (aiohttp.ClientConnectorError(None, OSError("refused")), Unavailable, "peer_unreachable"),  # type: ignore[arg-type]
        (aiohttp.ServerDisconnectedError(), Unavailable, "peer_broken"),
        (ConnectionResetError(), Unavailable, "peer_broken"),
        (TimeoutError(), Timeout, "deadline_exceeded"),
    ],
)
def test_failures_of_the_connection(error: Exception, kind: type[WrennError], slug: str) -> None:
    with pytest.raises(kind) as failed:
        unary(Session(error=error))
    assert failed.value.slug == slug
    with pytest.raises(kind):
        streamed(Session(error=error))


def test_a_stream_that_breaks_in_the_middle() -> None:
    content = Content([envelope(message(1))], error=aiohttp.ClientPayloadError())
    with pytest.raises(Unavailable):
        streamed(Session(content=content))


def test_what_the_caller_raises_stays_the_callers() -> None:
    async def work() -> None:
        session = Session(content=Content([envelope(message(1)), END]))
        with pytest.raises(TimeoutError):
            async with channel(session).server_stream("Start", pb.ListRequest(), pb.ListResponse):
                raise TimeoutError
        assert session.closed == 1

    asyncio.run(work())


def test_messages_have_a_limit_and_may_not_be_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooLarge):
        streamed(Session(content=Content([envelope(message(1), 1)])))
    monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", 1)
    with pytest.raises(TooLarge):
        streamed(Session(content=Content([envelope(message(1))])))


def test_client_stream_sends_envelopes() -> None:
    async def requests():
        yield pb.ListRequest()
        yield pb.SendSignalRequest(signal=pb.Signal.SIGKILL)

    async def work() -> list[bytes]:
        session = Session(content=Content([envelope(message(3)), END]))
        answer = await channel(session).client_stream("X", requests(), pb.ListResponse)
        assert answer.processes[0].pid == 3
        return [piece async for piece in session.posts[0]["data"]]

    assert asyncio.run(work()) == [envelope(b""), envelope(b"\x10\x09")]
