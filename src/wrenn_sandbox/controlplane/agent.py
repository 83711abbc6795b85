"""The client to a host agent: one kept-alive connection pool, typed errors, and cancels that stay cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol, TypeVar, cast

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from pyqwest import Client, HTTPTransport

from wrenn_sandbox.core.errors import Bug, Unavailable, WrennError
from wrenn_sandbox.rpc.errors import from_connect
from wrenn_sandbox.rpc.gen.hostagent.v1.hostagent_connect import HostAgentServiceClient

Req_contra = TypeVar("Req_contra", contravariant=True)
Res_co = TypeVar("Res_co", covariant=True)

#: For everything that is not a command or a create.
CALL_S = 15.0
#: Shorter than a server keeps an idle connection (uvicorn: 5 s), so that we never send into one being closed.
_POOL_IDLE_S = 4.0
_CONNECT_S = 3.0
_RETRY_AFTER_S = 2


class Unary(Protocol[Req_contra, Res_co]):
    """A method of the generated client that has one answer."""

    def __call__(
        self, request: Req_contra, *, headers: dict[str, str] | None = None, timeout_ms: int | None = None
    ) -> Awaitable[Res_co]:
        """Send ``request``."""


class Streaming(Protocol[Req_contra, Res_co]):
    """A method of the generated client that answers with a stream."""

    def __call__(
        self, request: Req_contra, *, headers: dict[str, str] | None = None, timeout_ms: int | None = None
    ) -> AsyncIterator[Res_co]:
        """Send ``request``."""


class HostAgent:
    """One host's agent. ``rpc`` has the generated methods, to be given to ``call`` and ``stream``."""

    def __init__(self, url: str, token: str, client: Client) -> None:
        self.url = url
        self.rpc = HostAgentServiceClient(url, http_client=client, accept_compression=(), send_compression=None)
        self.bearer = f"Bearer {token}"
        self._headers = {"authorization": self.bearer}

    async def call(
        self, method: Unary[Req_contra, Res_co], request: Req_contra, *, timeout_s: float = CALL_S
    ) -> Res_co:
        """One call. Raises the agent's own typed error, or Unavailable (``host_unavailable``) when none came."""
        try:
            return await method(request, headers=self._headers, timeout_ms=int(timeout_s * 1000))
        except ConnectError as error:
            raise _typed(error) from error

    async def stream(self, method: Streaming[Req_contra, Res_co], request: Req_contra) -> AsyncGenerator[Res_co, None]:
        """A stream of answers without a time limit; use within ``aclosing``. Errors as ``call``, at any message."""
        try:
            # The generated methods promise an iterator; what they return is an async generator that must be closed.
            async with aclosing(cast("Any", method(request, headers=self._headers))) as messages:
                async for message in messages:
                    yield message
        except ConnectError as error:
            raise _typed(error) from error


@asynccontextmanager
async def open_agent(url: str, token: str) -> AsyncIterator[HostAgent]:
    """A client to the agent at ``url``; its connections are closed on leaving."""
    transport = HTTPTransport(
        connect_timeout=_CONNECT_S,
        pool_idle_timeout=_POOL_IDLE_S,
        pool_max_idle_per_host=64,
        follow_redirects=False,
        enable_gzip=False,
        enable_brotli=False,
        enable_zstd=False,
        enable_otel=False,
    )
    async with transport:
        yield HostAgent(url, token, Client(transport))


def _typed(error: ConnectError) -> BaseException:
    if isinstance(error.__cause__, asyncio.CancelledError):
        return error.__cause__  # the client library answers a cancel with an error; a cancel must go on as one
    if error.details:
        typed = from_connect(error)
        return _our_fault(typed) if error.code is Code.UNAUTHENTICATED else typed
    if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELED):
        return Unavailable("The host of this sandbox does not answer; try again soon.", retry_after_s=_RETRY_AFTER_S)
    return _our_fault(error) if error.code is Code.UNAUTHENTICATED else Bug(f"The host agent failed: {error.message}")


def _our_fault(error: Exception) -> WrennError:
    return Unavailable(f"The host agent does not accept this control plane's token ({error}); check both token files.")
