"""A small client of the control plane's HTTP API, for the command line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import aiohttp

from wrenn_sandbox.core.errors import (
    HTTP_STATUS,
    Bug,
    Invalid,
    Timeout,
    Unauthenticated,
    Unavailable,
    WrennError,
)

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_KEY_FILE = Path("/var/lib/wrenn/api.key")
_CHUNK = 64 * 1024
_CLASS_OF_STATUS: dict[int, type[WrennError]] = {status: cls for cls, status in reversed(HTTP_STATUS.items())}

Json = dict[str, object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the API is and the key for it. ``key`` never appears in a repr."""

    url: str
    key: str

    def __repr__(self) -> str:
        return f"Credentials(url={self.url!r})"

    @classmethod
    def find(cls) -> Self:
        """From WRENN_BASE_URL and WRENN_API_KEY, else the key that ``wrenn up`` left on this machine."""
        url = os.environ.get("WRENN_BASE_URL", DEFAULT_URL).rstrip("/")
        key = os.environ.get("WRENN_API_KEY", "")
        if not key:
            try:
                key = DEFAULT_KEY_FILE.read_text().strip()
            except OSError as error:
                raise Unauthenticated(
                    "No API key: set WRENN_API_KEY (and WRENN_BASE_URL), or run as the user that ran `wrenn up`."
                ) from error
        return cls(url, key)


class Api:
    """Calls of one API; use ``connect``."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def call(self, method: str, path: str, body: object = None, *, timeout_s: float = 120) -> Json:
        """One JSON call; an error answer becomes its typed error, an answer without body an empty object."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._request(method, path, json=body, timeout=timeout) as response:
            if response.status == 204:
                return {}
            answer = await response.json()
            return answer if isinstance(answer, dict) else {"items": answer}

    async def upload(self, path: str, source: Path) -> None:
        """PUT a file's content, streamed."""
        with source.open("rb") as file:
            async with self._request("PUT", path, data=file, timeout=aiohttp.ClientTimeout(total=None)):
                return

    async def download(self, path: str) -> AsyncIterator[bytes]:
        """GET a body in pieces."""
        async with self._request("GET", path, timeout=aiohttp.ClientTimeout(total=None)) as response:
            async for chunk in response.content.iter_chunked(_CHUNK):
                yield chunk

    @asynccontextmanager
    async def websocket(self, path: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """An open WebSocket."""
        try:
            async with self._session.ws_connect(self._url + path, heartbeat=30) as socket:
                yield socket
        except aiohttp.WSServerHandshakeError as error:
            raise _error_class(error.status)(f"The API refused the terminal: {error.message}.") from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _no_answer(self._url, error) from error

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: object) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self._url + path, **options) as response:  # type: ignore[arg-type]
                if response.status >= 400:
                    raise await _error_of(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _no_answer(self._url, error) from error


@asynccontextmanager
async def connect(credentials: Credentials) -> AsyncIterator[Api]:
    """An Api whose connections close with the context."""
    async with aiohttp.ClientSession(headers={"X-API-Key": credentials.key}) as session:
        yield Api(session, credentials.url)


def items_of(answer: Json) -> list[Json]:
    """What a list answer lists."""
    items = answer.get("items", [])
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def run(use: Callable[[Api], Coroutine[object, object, T]]) -> T:
    """Do one thing with the API that the environment names."""

    async def session() -> T:
        async with connect(Credentials.find()) as api:
            return await use(api)

    return asyncio.run(session())


async def _error_of(response: aiohttp.ClientResponse) -> WrennError:
    cls = _error_class(response.status)
    try:
        error = (await response.json())["error"]
        return cls(str(error["message"]), slug=str(error["code"]))
    except (ValueError, KeyError, TypeError, aiohttp.ContentTypeError):
        return cls(f"The API answered {response.status}.")


def _error_class(status: int) -> type[WrennError]:
    return _CLASS_OF_STATUS.get(status, Invalid if status < 500 else Bug)


def _no_answer(url: str, error: Exception) -> WrennError:
    match error:
        case aiohttp.ClientConnectorError():
            return Unavailable(f"Nothing answers at {url}: is `wrenn up` running?", slug="api_unreachable")
        case TimeoutError():
            return Timeout(f"{url} has not answered in time.")
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
            return Unavailable(f"The connection to {url} ended before the answer did.", slug="connection_lost")
        case _:
            return Invalid(f"{url} is not the address of a Wrenn API, or its key is malformed.", slug="invalid_address")
