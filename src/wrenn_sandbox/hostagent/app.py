"""The agent's one listener: every request shows the bearer token, then goes to the proxy or to the RPC service."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable

from wrenn_sandbox.core.errors import TooLarge, Unauthenticated, Unavailable, WrennError, connect_code
from wrenn_sandbox.hostagent.proxy import PREFIX
from wrenn_sandbox.hostagent.service.service import MAX_MESSAGE_BYTES
from wrenn_sandbox.rpc import relay

Application = Callable[[relay.Scope, relay.Receive, relay.Send], Awaitable[None]]

_ENVELOPED = b"application/connect+"


class App:
    """The ASGI application of the whole process; it serves nothing before ``complete`` returns."""

    def __init__(
        self, token: str, calls: Application, proxy: Application, complete: Callable[[], Awaitable[None]]
    ) -> None:
        self._expected = f"Bearer {token}".encode()
        self._calls = calls
        self._proxy = proxy
        self._complete = complete

    async def __call__(self, scope: relay.Scope, receive: relay.Receive, send: relay.Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "lifespan":
            return
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            await _answer(scope, send, 401, Unauthenticated("Send the host agent's token as a bearer token."))
        elif (error := await self._starting()) is not None:
            await _answer(scope, send, 503, error)
        elif scope["path"].startswith(PREFIX):
            await self._proxy(scope, receive, send)
        elif scope["type"] == "websocket":
            await relay.refuse(scope, send, 404, b"{}")
        elif _too_long(headers):
            await _answer(scope, send, 400, TooLarge(f"The message is larger than {MAX_MESSAGE_BYTES} bytes."))
        else:
            await self._calls(scope, receive, send)

    async def _starting(self) -> Unavailable | None:
        """Nobody is answered before it is known what an earlier agent left here."""
        try:
            await self._complete()
        except Unavailable as error:
            return error
        return None


def _too_long(headers: dict[bytes, bytes]) -> bool:
    """Whether a single message says that it is above the limit; the RPC library would call that ``host_full``."""
    if headers.get(b"content-type", b"").startswith(_ENVELOPED):
        return False
    length = headers.get(b"content-length", b"0")
    return length.isdigit() and int(length) > MAX_MESSAGE_BYTES


async def _answer(scope: relay.Scope, send: relay.Send, status: int, error: WrennError) -> None:
    body = {"code": connect_code(error), "message": error.message}
    await relay.refuse(scope, send, status, json.dumps(body).encode())
