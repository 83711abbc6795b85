"""The ASGI application of envd: one door, one table of routes, the RPC services behind it.

Every request passes, in this order: the gate (closed while the start-up exercise runs), CORS preflight, the access
check of ``auth``, the table. Errors leave as one JSON shape; whoever raises them never writes an answer.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

from wrenn_sandbox.core.errors import NotFound, WrennError
from wrenn_sandbox.envd import auth
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.download import get_file
from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.http import NO_STORE, Asgi, Receive, Request, Scope, Send
from wrenn_sandbox.envd.init import MAX_BODY_BYTES, Initializer
from wrenn_sandbox.envd.metrics import Gauge
from wrenn_sandbox.envd.upload import post_files

_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
    (b"access-control-max-age", b"7200"),
)


class Ports(Protocol):
    """The port subsystem, or what stands in for it."""

    async def start(self) -> None:
        """No-op when running."""

    async def stop(self) -> None:
        """Return when nothing of it is left."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the application is made of. ``contexts`` are entered, in order, before the first request."""

    context: GuestContext
    ports: Ports
    initializer: Initializer
    files: FileAccess
    gauge: Gauge = field(default_factory=Gauge)
    services: Mapping[str, Asgi] = field(default_factory=dict)
    contexts: tuple[AbstractAsyncContextManager[object], ...] = ()
    #: Ports of the daemon itself, which are never forwarded; known only when it listens.
    own_ports: set[int] = field(default_factory=set)


class Application:
    """Routes requests. Until ``open_gate`` only requests that carry ``exercise_token`` are let in; others wait."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._gate = asyncio.Event()
        self.exercise_token = secrets.token_hex(16)
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[None]]] = {
            ("GET", "/health"): self._health,
            ("POST", "/init"): self._init,
            ("POST", "/snapshot/prepare"): self._prepare,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/envs"): self._envs,
            ("GET", "/files"): self._get_file,
            ("POST", "/files"): self._post_files,
        }
        self._paths = {path for _, path in self._routes}

    @property
    def parts(self) -> Parts:
        """What it is made of."""
        return self._parts

    def open_gate(self) -> None:
        """Let every request in."""
        self._gate.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        request = Request(scope, receive, send)
        try:
            await self._serve(request)
        except WrennError as error:
            if request.started:
                raise
            await request.respond_error(error)

    async def _serve(self, request: Request) -> None:
        offered = request.header(b"x-access-token")
        if not self._gate.is_set() and not auth.same(offered, self.exercise_token.encode()):
            await self._gate.wait()
        if request.method == "OPTIONS" and request.header(b"access-control-request-method"):
            wanted = request.header(b"access-control-request-headers")
            await request.respond(204, [*_PREFLIGHT, (b"access-control-allow-headers", wanted or b"*")])
            return
        token = self._parts.context.access_token or ""
        query = request.query() if request.path == "/files" else {}
        auth.check_request(token, request.method, request.path, offered, query=query, now_s=time.time())
        handler = self._routes.get((request.method, request.path))
        if handler is not None:
            await handler(request)
            return
        service = self._parts.services.get(request.path[1:].partition("/")[0])
        if service is not None:
            await request.hand_over(service)
        elif request.path in self._paths:
            body = {"code": 405, "message": f"{request.method} is not possible here.", "error_code": "invalid_method"}
            await request.respond_json(body, 405)
        else:
            raise NotFound(f"envd has no {request.path}.")

    async def _health(self, request: Request) -> None:
        await request.respond(204, (NO_STORE,))

    async def _init(self, request: Request) -> None:
        body = await request.body(MAX_BODY_BYTES)
        await self._parts.initializer.handle(body, request.header(b"x-access-token"))
        await request.respond(204, (NO_STORE,))

    async def _prepare(self, request: Request) -> None:
        await self._parts.ports.stop()
        # A connection in the snapshot would be half of one whose other half is gone in every restore.
        await request.respond(204, (NO_STORE, (b"connection", b"close")))

    async def _metrics(self, request: Request) -> None:
        await request.respond_json(self._parts.gauge.read())

    async def _envs(self, request: Request) -> None:
        await request.respond_json(self._parts.context.all_envs())

    async def _get_file(self, request: Request) -> None:
        await get_file(self._parts.files, request, request.query())

    async def _post_files(self, request: Request) -> None:
        await post_files(self._parts.files, request, request.query())

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            await receive()
            for context in self._parts.contexts:
                await stack.enter_async_context(context)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
