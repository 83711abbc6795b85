"""One reverse-proxy hop: an ASGI request or WebSocket, relayed to an upstream URL, streaming both ways.

Control plane and host agent each make one such hop. Memory stays constant: at most one chunk each way is held, and a
side that reads slowly slows the other down. Nothing is sent to the client before the upstream's answer has begun, so
until then every failure is a typed exception and the caller chooses the words; after that the connection is cut.

The client's own ``Authorization`` must reach the program in the sandbox although the hop between control plane and
host agent needs that header itself: the control plane sends it as ``FORWARDED_AUTHORIZATION``, the agent puts it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.rpc.session import breaking_session

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Opened = TypeVar("Opened")

FORWARDED_AUTHORIZATION = "x-wrenn-forwarded-authorization"
#: Bytes of one direction held in memory at most, per request.
CHUNK_BYTES = 64 * 1024
#: Largest WebSocket message that passes.
MAX_WEBSOCKET_MESSAGE_BYTES = 16 * 1024 * 1024

#: Headers that belong to one connection (RFC 9110 section 7.6.1), never relayed.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",  # answered by our own server when the body is first read
    }
)
_WEBSOCKET_HANDSHAKE = frozenset(
    {
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "sec-websocket-accept",
        "content-length",
    }
)
_ABNORMAL_CLOSURE = 1011
#: Every printable ASCII character: what is encoded stays as it is, and so does what a client should have encoded.
_TARGET_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F))
#: What a message cannot do without: naming them in Connection does not take them away (RFC 9110 section 7.6.1).
_END_TO_END = frozenset({"host", "content-length", "content-type", "content-encoding"})


class DialFailed(Unavailable):
    """No connection to the upstream: nothing of the request was sent."""

    default_slug = "port_not_open"


class UpstreamBroken(Unavailable):
    """The upstream took the request and closed the connection without an answer."""

    default_slug = "upstream_broken"


class UpgradeRefused(Unavailable):
    """The upstream answered a WebSocket handshake with something else; ``status`` is its HTTP status."""

    default_slug = "upgrade_refused"

    def __init__(self, status: int) -> None:
        super().__init__(f"The program behind this port answered the WebSocket handshake with status {status}.")
        self.status = status


class UpstreamCut(Exception):
    """The upstream broke off within its answer; the server must break off too and never end the body politely."""


class _ClientGone(Exception):
    """The client closed its connection."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where to, percent-encoded, and the pauses after which a failed dial is tried again."""

    url: str
    dial_pauses_s: Sequence[float] = ()


def _upstream(given: str | Upstream) -> Upstream:
    return Upstream(given) if isinstance(given, str) else given


def as_target(raw_path: bytes, query: bytes) -> str:
    """Path and query as they came, but for bytes that no request line may have: those are percent-encoded."""
    return quote(raw_path + b"?" + query if query else raw_path, safe=_TARGET_CHARACTERS)


def relay_session(
    *, connect_timeout_s: float = 10.0, keepalive_s: float = 4.0
) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    """A session set up for relaying: no cookies, no decompression, no limit on duration or number of connections.

    ``keepalive_s`` stays below what common servers use (Node: 5 s), so that we, not they, drop idle connections.
    """
    return breaking_session(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_s, use_dns_cache=False),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        auto_decompress=False,
        read_bufsize=CHUNK_BYTES,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        trust_env=False,
        max_line_size=64 * 1024,
        max_field_size=64 * 1024,
    )


async def relay_http(
    scope: Scope,
    receive: Receive,
    send: Send,
    session: aiohttp.ClientSession,
    upstream_url: str | Upstream,
    *,
    headers_drop: Collection[str] = (),
    extra_headers: Sequence[tuple[str, str]] = (),
) -> None:
    """Relay one HTTP request to ``upstream_url`` (already percent-encoded, with its query) and its answer back.

    ``headers_drop`` names request headers (lower case) that stay behind. An upstream to which no connection can be made
    is dialled again as Upstream says. Raises DialFailed or UpstreamBroken only while
    nothing has been sent to the client. A client that goes away ends the upstream request.
    """
    headers = _request_headers(scope, headers_drop, extra_headers)
    upstream = _upstream(upstream_url)
    hop = _HttpHop(scope, receive, send, upstream.dial_pauses_s)
    failure: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(hop.raise_when_gone())
            try:
                await hop.exchange(session, URL(upstream.url, encoded=True), headers)
            except (Unavailable, UpstreamCut) as error:  # carried out by hand: a group would wrap it
                failure = error
            watch.cancel()
    except* _ClientGone:
        failure = None
    if failure is not None and not hop.client_gone:
        raise failure


class _HttpHop:
    """One HTTP request on its way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, dial_pauses_s: Sequence[float]) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._dial_pauses_s = dial_pauses_s
        self._body_read = asyncio.Event()
        self.client_gone = False

    async def exchange(self, session: aiohttp.ClientSession, url: URL, headers: CIMultiDict[str]) -> None:
        has_body = "content-length" in headers or _has_header(self._scope, b"transfer-encoding")
        if not has_body:
            self._body_read.set()

        async def dial() -> aiohttp.ClientResponse:
            data = self._request_body() if has_body else None
            return await session.request(self._scope["method"], url, headers=headers, data=data, allow_redirects=False)

        async with await _dialled(dial, self._dial_pauses_s) as answer:
            start = {"type": "http.response.start", "status": answer.status, "headers": _answer_headers(answer)}
            try:
                await self._send(start)
                async for chunk in answer.content.iter_any():
                    for piece in _pieces(chunk):
                        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise UpstreamCut(str(error)) from error

    async def _request_body(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.client_gone = True
                raise _ClientGone  # breaks the upstream connection off
            if chunk := message.get("body", b""):
                yield chunk
            if not message.get("more_body", False):
                self._body_read.set()
                return

    async def raise_when_gone(self) -> None:
        """End the exchange when the client leaves after its whole request was read."""
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_gone = True
        raise _ClientGone


def _pieces(chunk: bytes) -> Iterable[bytes]:
    if len(chunk) <= CHUNK_BYTES:
        return (chunk,)
    return (chunk[i : i + CHUNK_BYTES] for i in range(0, len(chunk), CHUNK_BYTES))


async def _dialled(dial: Callable[[], Awaitable[Opened]], pauses_s: Sequence[float]) -> Opened:
    for pause_s in (*pauses_s, None):
        try:
            return await dial()
        except aiohttp.WSServerHandshakeError as error:
            raise UpgradeRefused(error.status) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if pause_s is None:
                raise DialFailed("Nothing listens on this port of the sandbox.") from error
            await asyncio.sleep(pause_s)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UpstreamBroken("The program behind this port closed the connection without an answer.") from error
    raise AssertionError("the last pause is None")


def _request_headers(scope: Scope, drop: Collection[str], extra: Sequence[tuple[str, str]]) -> CIMultiDict[str]:
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    unwanted = _HOP_BY_HOP | _named_by_connection(pairs) | set(drop)
    headers = CIMultiDict((name, value) for name, value in pairs if name.lower() not in unwanted)
    for name, value in extra:
        headers[name] = value
    return headers


def _answer_headers(answer: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    unwanted = _HOP_BY_HOP | _named_by_connection(answer.headers.items())
    return [(name, value) for name, value in answer.raw_headers if name.decode("latin-1").lower() not in unwanted]


def _named_by_connection(pairs: Iterable[tuple[str, str]]) -> set[str]:
    named = {word.strip().lower() for name, value in pairs if name.lower() == "connection" for word in value.split(",")}
    return named - _END_TO_END


def _has_header(scope: Scope, wanted: bytes) -> bool:
    return any(name.lower() == wanted for name, _ in scope["headers"])


async def relay_websocket(
    scope: Scope,
    receive: Receive,
    send: Send,
    session: aiohttp.ClientSession,
    upstream_url: str | Upstream,
    *,
    headers_drop: Collection[str] = (),
    extra_headers: Sequence[tuple[str, str]] = (),
) -> None:
    """Relay one WebSocket to ``upstream_url`` (``http`` or ``ws`` scheme) until either side closes.

    The client's handshake is answered only when the upstream has accepted; until then DialFailed, UpstreamBroken or
    UpgradeRefused is raised and the caller answers with ``refuse``.
    """
    headers = _request_headers(scope, {*_WEBSOCKET_HANDSHAKE, *headers_drop}, extra_headers)
    if (await receive())["type"] != "websocket.connect":
        return

    target = _upstream(upstream_url)

    async def dial() -> aiohttp.ClientWebSocketResponse:
        return await session.ws_connect(
            URL(target.url, encoded=True),
            headers=headers,
            protocols=tuple(scope.get("subprotocols", ())),
            max_msg_size=MAX_WEBSOCKET_MESSAGE_BYTES,
            compress=0,
        )

    upstream = await _dialled(dial, target.dial_pauses_s)
    async with upstream:
        await send({"type": "websocket.accept", "subprotocol": upstream.protocol})
        async with asyncio.TaskGroup() as group:
            upward = group.create_task(_client_to_upstream(receive, upstream))
            await _upstream_to_client(upstream, send)
            upward.cancel()


async def _client_to_upstream(receive: Receive, upstream: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            await upstream.close(code=_sendable(message.get("code")), message=(message.get("reason") or "").encode())
            return
        try:
            if (text := message.get("text")) is not None:
                await upstream.send_str(text)
            elif (data := message.get("bytes")) is not None:
                await upstream.send_bytes(data)
        except (aiohttp.ClientError, OSError):
            return  # the reading side sees the close and its code


async def _upstream_to_client(upstream: aiohttp.ClientWebSocketResponse, send: Send) -> None:
    try:
        async for message in upstream:
            if message.type is aiohttp.WSMsgType.TEXT:
                await send({"type": "websocket.send", "text": message.data})
            elif message.type is aiohttp.WSMsgType.BINARY:
                await send({"type": "websocket.send", "bytes": message.data})
        await send({"type": "websocket.close", "code": _sendable(upstream.close_code)})
    except (OSError, RuntimeError):
        return  # the client has gone: its own server refuses what we send


def _sendable(code: int | None) -> int:
    """A close code that may be put in a frame (RFC 6455 section 7.4): 1005, 1006 and 1015 may not."""
    if code is None or code == 1005:
        return 1000
    return _ABNORMAL_CLOSURE if code in (1006, 1015) or not 1000 <= code < 5000 else code


async def refuse(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    content_type: str = "application/json",
    *,
    retry_after_s: int = 0,
) -> None:
    """Answer a request, or a WebSocket handshake that was not accepted yet, with an error."""
    kind = "http" if scope["type"] == "http" else "websocket.http"
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    if retry_after_s:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    if kind == "websocket.http" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": f"{kind}.response.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body, "more_body": False})
