"""The outermost layer: a request id for everyone, and a limit on bodies that are held in memory."""

from __future__ import annotations

import re
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Bodies that are held in memory. Files are streamed and have no limit here.
MAX_BODY_BYTES = 4 << 20
_STREAMED = re.compile(r"/v1/(?:sandboxes|capsules)/[^/]+/files(?:/write|/stream/write)?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Edge:
    """Pure ASGI around the whole API. A request id given by the caller is kept when it looks harmless."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["wrenn.request_id"] = _given_id(scope) or uuid4().hex.encode()
        request = _Guarded(scope, receive, send)
        try:
            await self._app(scope, request.receive, request.send)
        except Exception:
            if not request.answered:  # else it was logged where it was answered
                raise


class _Guarded:
    """One HTTP request with its id and its count of body bytes."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._id = scope["wrenn.request_id"]
        self._room = None if _STREAMED.fullmatch(scope["path"]) else MAX_BODY_BYTES
        self.answered = False

    async def receive(self) -> Message:
        message = await self._receive()
        if self._room is not None and message["type"] == "http.request":
            self._room -= len(message.get("body", b""))
            if self._room < 0:
                limit = MAX_BODY_BYTES >> 20
                raise HTTPException(413, f"The body is larger than {limit} MiB; send big content as a file.")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._id)]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.answered = True


def _given_id(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value)
    return None
