"""Who asks: the API key of a request becomes the team it stands for."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from wrenn_sandbox.controlplane.platform import Caller, Platform
from wrenn_sandbox.controlplane.usecases.issue_keys import recognise
from wrenn_sandbox.core.errors import Unauthenticated
from wrenn_sandbox.core.ids import SandboxId


class Access(Enum):
    """What an endpoint needs."""

    OPEN = "nothing"
    TEAM_KEY = "an API key in X-API-Key"
    TEAM_KEY_OR_FIRST_MESSAGE = "an API key in X-API-Key, or in the first message of the WebSocket"


async def platform_of(connection: HTTPConnection) -> Platform:
    """The control plane that serves this connection."""
    return cast("Platform", connection.app.state.platform)


async def caller_of(connection: HTTPConnection) -> Caller:
    """Who asks. Raises Unauthenticated."""
    presented = connection.headers.get("x-api-key", "")
    if not presented:
        raise Unauthenticated("Send your API key in the X-API-Key header.")
    return await recognise(await platform_of(connection), presented)


async def sandbox_in_path(sandbox_id: str) -> SandboxId:
    """The sandbox that the path names. Raises Invalid (``invalid_id``)."""
    return SandboxId.parse(sandbox_id)


Here = Annotated[Platform, Depends(platform_of)]
Who = Annotated[Caller, Depends(caller_of)]
InPath = Annotated[SandboxId, Depends(sandbox_in_path)]
