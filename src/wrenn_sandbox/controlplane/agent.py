"""The client to a host agent: typed errors, of which the user hears about the host and not about our plumbing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import aiohttp
import structlog

from wrenn_sandbox.core.errors import Timeout, Unauthenticated, Unavailable, WrennError
from wrenn_sandbox.rpc.channel import Channel, Message
from wrenn_sandbox.rpc.relay import relay_session

Answer = TypeVar("Answer", bound=Message)

SERVICE = "hostagent.v1.HostAgentService"
#: For everything that is not a command or a create.
CALL_S = 15.0
_RETRY_AFTER_S = 2
#: What the channel says when the agent itself said nothing.
_PLUMBING = frozenset({"peer_unreachable", "peer_broken"})

_log = structlog.get_logger()


class NotAsked(Unavailable):
    """The call did not get as far as the host's doing anything. Any other Unavailable leaves that open."""


class HostAgent:
    """One host's agent. ``method`` is always the name of an RPC, ``answer`` the class of its answer.

    Raises the agent's own typed errors, or Unavailable (``host_unavailable``) when none came.
    """

    def __init__(self, url: str, token: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.bearer = f"Bearer {token}"
        self._channel = Channel(session, url, SERVICE, {"authorization": self.bearer})

    async def call(self, method: str, request: Message, answer: type[Answer], *, timeout_s: float = CALL_S) -> Answer:
        """One request, one answer."""
        with _translated(method):
            return await self._channel.unary(method, request, answer, timeout_s=timeout_s)

    async def stream(self, method: str, request: Message, answer: type[Answer]) -> AsyncGenerator[Answer, None]:
        """A stream of answers without a time limit; use within ``aclosing``."""
        with _translated(method):
            async with self._channel.server_stream(method, request, answer) as messages:
                async for message in messages:
                    yield message

    async def send_stream(self, method: str, requests: AsyncIterator[Message], answer: type[Answer]) -> Answer:
        """A stream of requests, one answer; no time limit."""
        with _translated(method):
            return await self._channel.client_stream(method, requests, answer)


@asynccontextmanager
async def open_agent(url: str, token: str) -> AsyncIterator[HostAgent]:
    """A client to the agent at ``url``; its connections are kept alive, and closed on leaving."""
    async with relay_session(connect_timeout_s=3.0) as session:
        yield HostAgent(url, token, session)


@contextmanager
def _translated(method: str) -> Iterator[None]:
    try:
        yield
    except Unauthenticated as error:
        _log.error("the host agent does not take our token", reason=error.message)
        raise NotAsked("The host agent does not accept this control plane's token: check both token files.")
    except WrennError as error:
        silent = isinstance(error, Timeout) and isinstance(error.__cause__, TimeoutError)
        if error.slug not in _PLUMBING and not silent:
            raise
        _log.warning("the host agent does not answer", method=method, reason=error.message)
        kind = NotAsked if error.slug == "peer_unreachable" else Unavailable
        raise kind("The host of this sandbox does not answer; try again soon.", retry_after_s=_RETRY_AFTER_S) from error
