"""The thin layer between ASGI events and envd's handlers: one small object a request, no framework.

After a restore the first requests run cold code on an emulated CPU, so there is nothing here that is not needed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypedDict
from urllib.parse import parse_qsl

from wrenn_sandbox.core.errors import Canceled, Invalid, TooLarge, WrennError, http_status

Header = tuple[bytes, bytes]

#: Seconds without a byte after which a half-sent request body is given up.
BODY_IDLE_TIMEOUT_S = 640.0

JSON_TYPE: Header = (b"content-type", b"application/json; charset=utf-8")
NO_SNIFF: Header = (b"x-content-type-options", b"nosniff")
NO_STORE: Header = (b"cache-control", b"no-store")
ANY_ORIGIN: Header = (b"access-control-allow-origin", b"*")


class Scope(TypedDict, total=False):
    """The keys of an ASGI HTTP or lifespan scope that envd reads."""

    type: str
    method: str
    path: str
    query_string: bytes
    headers: list[Header]


class Event(TypedDict, total=False):
    """Any ASGI message envd receives or sends."""

    type: str
    status: int
    headers: list[Header]
    body: bytes
    more_body: bool
    message: str


Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Request:
    """One HTTP request and the way to answer it. ``started`` is true once the status line is out."""

    __slots__ = ("_receive", "_send", "method", "path", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method = scope["method"]
        self.path = scope["path"]
        self.started = False
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> bytes:
        """The first header of that lower-case name; empty when absent."""
        for key, value in self.scope["headers"]:
            if key == name:
                return value
        return b""

    def query(self) -> dict[str, str]:
        """The query by name, the last of equals. Bytes that are not UTF-8 stay file names (surrogateescape)."""
        text = self.scope["query_string"].decode("latin-1")
        try:
            pairs = parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=64)
        except ValueError as error:
            raise Invalid("The query has too many fields: at most 64 are read.") from error
        return dict(pairs)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; raises Canceled when the client goes away or falls silent before its end."""
        while True:
            try:
                async with asyncio.timeout(BODY_IDLE_TIMEOUT_S):
                    event = await self._receive()
            except TimeoutError as error:
                raise Canceled("The request body stopped coming; send it again.") from error
            if event["type"] == "http.disconnect":
                raise Canceled("The client went away before the request was complete.")
            if body := event.get("body", b""):
                yield body
            if not event.get("more_body", False):
                return

    async def body(self, limit: int) -> bytes:
        """The whole body; raises TooLarge above ``limit`` bytes."""
        parts, size = [], 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"The request body is larger than {limit} bytes.")
            parts.append(chunk)
        return b"".join(parts)

    async def disconnected(self) -> None:
        """Return when the client has gone away. Only after the request body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send the status line and headers."""
        fields = [*headers]
        if self.header(b"origin"):
            fields.append(ANY_ORIGIN)
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def send(self, body: bytes, *, more: bool) -> None:
        """Send a piece of the answer's body; returns when the connection can take the next one."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def hand_over(self, service: Asgi) -> None:
        """Let another ASGI application answer."""
        send = self._send
        if self.header(b"origin"):
            send = self._send_to_any_origin
        await service(self.scope, self._receive, send)

    async def _send_to_any_origin(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            event = {**event, "headers": [*event["headers"], ANY_ORIGIN]}
        await self._send(event)

    async def respond(self, status: int, headers: Iterable[Header] = (), body: bytes = b"") -> None:
        """Send a whole answer."""
        length = [] if status in {204, 304} else [(b"content-length", b"%d" % len(body))]
        await self.start(status, [*headers, *length])
        await self.send(body, more=False)

    async def respond_json(self, value: object, status: int = 200) -> None:
        """Send ``value`` as JSON."""
        await self.respond(status, (JSON_TYPE, NO_SNIFF), to_json(value))

    async def respond_error(self, error: WrennError) -> None:
        """Send ``error`` as ``{code, message, error_code}``, or in Connect's form on an RPC path."""
        status = http_status(error)
        code: int | str = status
        if "." in self.path.partition("/")[2].partition("/")[0]:  # /process.Process/Start
            from wrenn_sandbox.core.errors import connect_code

            code = connect_code(error)
        await self.respond_json({"code": code, "message": error.message, "error_code": error.slug}, status)


def to_json(value: object) -> bytes:
    """Compact JSON; file names that are not UTF-8 are shown with replacement characters."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
