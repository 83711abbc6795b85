"""The one place where errors leave the host agent: ours keep class and slug, anything else becomes a reference."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import structlog
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext

from wrenn_sandbox.core.errors import Bug, WrennError, first_cause
from wrenn_sandbox.rpc.errors import to_connect

log = structlog.get_logger()

Req = TypeVar("Req")
Res = TypeVar("Res")


class ErrorTranslator:
    """A Connect interceptor for every kind of call this service has."""

    async def intercept_unary(
        self, call_next: Callable[[Req, RequestContext[Any, Any]], Awaitable[Res]], request: Req, ctx: Any
    ) -> Res:
        """A call with one answer."""
        try:
            return await call_next(request, ctx)
        except Exception as error:
            raise translated(error, ctx.method.name) from error

    async def intercept_client_stream(
        self,
        call_next: Callable[[AsyncIterator[Req], RequestContext[Any, Any]], Awaitable[Res]],
        request: AsyncIterator[Req],
        ctx: Any,
    ) -> Res:
        """A call with a stream of requests."""
        try:
            return await call_next(request, ctx)
        except Exception as error:
            raise translated(error, ctx.method.name) from error

    async def intercept_server_stream(
        self, call_next: Callable[[Req, RequestContext[Any, Any]], AsyncIterator[Res]], request: Req, ctx: Any
    ) -> AsyncIterator[Res]:
        """A call with a stream of answers; the handler's generator is closed with ours."""
        answers = call_next(request, ctx)
        try:
            async for answer in answers:
                yield answer
        except Exception as error:
            raise translated(error, ctx.method.name) from error
        finally:
            if (close := getattr(answers, "aclose", None)) is not None:
                await close()


def translated(error: Exception, call: str) -> ConnectError:
    """What the caller gets to see of ``error``."""
    cause = first_cause(error)
    if isinstance(cause, ConnectError):
        return cause
    if isinstance(cause, WrennError):
        return to_connect(cause)
    reference = secrets.token_hex(4)
    log.error("call failed", call=call, reference=reference, exc_info=error)
    return to_connect(Bug(f"The host agent failed; its log has the details under reference {reference}."))
