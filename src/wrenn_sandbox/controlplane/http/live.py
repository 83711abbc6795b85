"""WebSockets with JSON messages: authentication, typed errors as messages, and close codes that say the same.

An error is the message ``{"type": "error", "code": <slug>, "data": <sentence>}``. One that ends the conversation has
``"fatal": true`` and is followed by the close code 4000 + the HTTP status of its kind.

The Origin of a handshake is not looked at: a socket is opened with a key that its client must know, and with nothing
that a browser would add by itself, so a page of a stranger can open one but not use it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from wrenn_sandbox.controlplane.http.auth import caller_of, platform_of
from wrenn_sandbox.controlplane.http.errors import complaint, envelope
from wrenn_sandbox.controlplane.platform import Caller, Platform
from wrenn_sandbox.controlplane.usecases.issue_keys import recognise
from wrenn_sandbox.core.errors import Bug, Invalid, Unauthenticated, WrennError, http_status
from wrenn_sandbox.core.ids import SandboxId

M = TypeVar("M")

#: How long a socket without a key in its header may take to send one.
AUTH_S = 5.0
#: Longest message of a client to the API, in characters.
MAX_MESSAGE = 1 << 20
_NORMAL, _CLOSE_BASE = 1000, 4000

_log = structlog.get_logger()


class Gone(Exception):
    """The client closed the socket."""


class Auth(BaseModel):
    """The first message of a socket that carries no key in its header."""

    type: str
    token: str = Field(repr=False)


class Live:
    """An accepted socket and who is behind it."""

    def __init__(self, websocket: WebSocket, platform: Platform, caller: Caller, sandbox: SandboxId) -> None:
        self._websocket = websocket
        self.platform, self.caller, self.sandbox = platform, caller, sandbox
        self.query, self.path = websocket.query_params, websocket.path_params

    async def send(self, **message: object) -> None:
        """Send one message. Raises Gone. Waits while the client does not read."""
        await _send(self._websocket, message)

    async def receive(self, model: TypeAdapter[M]) -> M:
        """The next message. Raises Gone, and Invalid for anything that is not a ``model``."""
        return await _receive(self._websocket, model)

    async def complain(self, error: WrennError, *, fatal: bool = False) -> None:
        """Report an error as a message."""
        await _complain(self._websocket, error, fatal=fatal)


Handler = Callable[[Live], Awaitable[None]]


def live_endpoint(handler: Handler) -> Callable[[WebSocket, str], Awaitable[None]]:
    """The WebSocket endpoint around ``handler``: nothing gets to it before the caller is known."""

    async def endpoint(websocket: WebSocket, sandbox_id: str) -> None:
        platform = await platform_of(websocket)
        try:
            sandbox = SandboxId.parse(sandbox_id)
            caller = await caller_of(websocket) if "x-api-key" in websocket.headers else None
        except WrennError as error:
            await websocket.send_denial_response(JSONResponse(envelope(error.slug, error.message), http_status(error)))
            return
        await websocket.accept()
        try:
            known = caller or await _first_message(websocket, platform)
            await handler(Live(websocket, platform, known, sandbox))
            await websocket.close(_NORMAL)
        except (Gone, WebSocketDisconnect):
            return
        except Exception as error:
            await _end(websocket, error)

    endpoint.__doc__ = handler.__doc__
    endpoint.__name__ = getattr(handler, "__name__", "live")
    return endpoint


async def _first_message(websocket: WebSocket, platform: Platform) -> Caller:
    try:
        async with asyncio.timeout(AUTH_S):
            auth = await _receive(websocket, TypeAdapter(Auth))
    except TimeoutError as error:
        raise Unauthenticated("Send the key within 5 s: in X-API-Key, or as the first message.") from error
    except Invalid as error:
        raise Unauthenticated('The first message must be {"type": "auth", "token": <API key>}.') from error
    if auth.type != "auth":
        raise Unauthenticated('The first message must be {"type": "auth", "token": <API key>}.')
    return await recognise(platform, auth.token)


async def _receive(websocket: WebSocket, model: TypeAdapter[M]) -> M:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise Gone
    text = message.get("text")
    if text is None or len(text) > MAX_MESSAGE:
        raise Invalid(f"Messages are JSON text frames of at most {MAX_MESSAGE >> 20} MiB.")
    try:
        return model.validate_json(text)
    except ValidationError as error:
        raise complaint(error.errors()) from error


async def _send(websocket: WebSocket, message: dict[str, object]) -> None:
    try:
        await websocket.send_text(json.dumps(message, ensure_ascii=False))
    except (WebSocketDisconnect, RuntimeError, OSError) as error:
        raise Gone from error


async def _complain(websocket: WebSocket, error: WrennError, *, fatal: bool) -> None:
    message: dict[str, object] = {"type": "error", "code": error.slug, "data": error.message}
    await _send(websocket, message | ({"fatal": True} if fatal else {}))


async def _end(websocket: WebSocket, error: Exception) -> None:
    if not isinstance(error, WrennError) or isinstance(error, Bug):
        _log.error("unexpected failure", path=websocket.url.path, exc_info=error)
        error = Bug("This should not have happened; the server's log says more.")
    try:
        await _complain(websocket, error, fatal=True)
        await websocket.close(_CLOSE_BASE + http_status(error), error.slug)
    except (Gone, RuntimeError, WebSocketDisconnect):
        return
