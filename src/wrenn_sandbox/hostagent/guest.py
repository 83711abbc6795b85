"""The host's end of envd: one client per sandbox, made after restore and closed before its VMM is stopped.

Each sandbox has its own connections, so a connection can never outlive its sandbox and answer for the next one on the
same address. Foreign errors become ours here: a missing file is NotFound, a directory Invalid, a full guest disk
NoSpace, silence Timeout, a dead guest Unavailable.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlencode

import aiohttp

from wrenn_sandbox.core.errors import (
    Bug,
    Denied,
    Invalid,
    NoSpace,
    NotFound,
    Timeout,
    TooLarge,
    Unavailable,
    WrennError,
)
from wrenn_sandbox.core.slots import ENVD_PORT
from wrenn_sandbox.hostagent.guest_processes import GuestProcesses
from wrenn_sandbox.rpc.channel import Channel

CHUNK_BYTES = 64 * 1024
#: A guest that neither sends nor takes a byte of a file for so long is given up.
FILE_IDLE_TIMEOUT_S = 120.0
_RETRY_S = 0.005

#: HTTP status of envd's /files -> our class and slug.
_FILE_ERRORS: dict[int, tuple[type[WrennError], str]] = {
    400: (Invalid, "invalid_path"),
    401: (Invalid, "invalid_user"),
    403: (Denied, "file_access_denied"),
    404: (NotFound, "file_not_found"),
    413: (TooLarge, "too_large"),
    507: (NoSpace, "no_space"),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What a guest is told about itself after every restore, through ``/init``."""

    sandbox_id: str
    template_id: str
    access_token: str = field(repr=False)
    machine_id: str  # 32 hex digits
    entropy: bytes = field(repr=False)  # at least 32 bytes of the host's random numbers
    timestamp_unix_s: float
    envs: Mapping[str, str] = field(repr=False)
    default_user: str
    default_workdir: str

    def to_json(self) -> dict[str, object]:
        """The body of ``/init``."""
        body: dict[str, object] = {
            "sandboxId": self.sandbox_id,
            "templateId": self.template_id,
            "accessToken": self.access_token,
            "machineId": self.machine_id,
            "entropy": base64.b64encode(self.entropy).decode(),
            "timestamp": _rfc3339(self.timestamp_unix_s),
            "envVars": dict(self.envs),
        }
        if self.default_user:
            body["defaultUser"] = self.default_user
        if self.default_workdir:
            body["defaultWorkdir"] = self.default_workdir
        return body


class Guest:
    """envd of one sandbox."""

    def __init__(self, session: aiohttp.ClientSession, host_ip: str, access_token: str) -> None:
        self._session = session
        self._url = f"http://{host_ip}:{ENVD_PORT}"
        self._headers = {"x-access-token": access_token} if access_token else {}
        self.processes = GuestProcesses(Channel(session, self._url, "process.Process", self._headers))

    async def initialise(self, identity: Identity, *, limit_s: float, known_token: str = "") -> None:
        """Make the restored guest a sandbox of its own; connection errors are tried again until ``limit_s``.

        ``known_token`` is the one that its memory holds. Raises Unavailable (``guest_unreachable``,
        ``guest_init_failed``): the guest must then not be used.
        """
        body = json.dumps(identity.to_json()).encode()
        try:
            async with asyncio.timeout(limit_s):
                status, text = await self._first_answer("/init", body, known_token=known_token)
        except TimeoutError as error:
            raise Unavailable(
                f"The sandbox's guest did not answer within {limit_s:.0f} s; create it again.", slug="guest_unreachable"
            ) from error
        if status not in (200, 204):
            raise Unavailable(
                f"The sandbox's guest refused its identity (status {status}: {text[:200]}); create it again.",
                slug="guest_init_failed",
            )

    async def healthy(self, *, limit_s: float) -> None:
        """Wait for a booting envd, which answers when it is warm. Raises Unavailable (``guest_unreachable``)."""
        try:
            async with asyncio.timeout(limit_s):
                await self._first_answer("/health", None, retry_s=0.1)
        except TimeoutError as error:
            raise Unavailable(f"The guest did not boot within {limit_s:.0f} s.", slug="guest_unreachable") from error

    async def prepare_snapshot(self, *, limit_s: float) -> None:
        """Ask envd to be quiet; raises Unavailable or Timeout when it is not."""
        try:
            async with asyncio.timeout(limit_s), self._session.post(self._url + "/snapshot/prepare") as answer:
                if answer.status != 204:
                    raise Unavailable(
                        f"The guest answered status {answer.status} to /snapshot/prepare.", slug="guest_not_quiet"
                    )
        except TimeoutError as error:
            raise Timeout(f"The guest was not quiet within {limit_s:.0f} s.", slug="guest_not_quiet") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _gone(error) from error

    async def _first_answer(
        self, path: str, body: bytes | None, *, retry_s: float = _RETRY_S, known_token: str = ""
    ) -> tuple[int, str]:
        method = "GET" if body is None else "POST"
        headers = {"content-type": "application/json"} | ({"x-access-token": known_token} if known_token else {})
        attempt = aiohttp.ClientTimeout(total=None, sock_connect=1.0)
        while True:
            try:
                async with self._session.request(
                    method, self._url + path, data=body, headers=headers, timeout=attempt
                ) as answer:
                    return answer.status, await answer.text()
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(retry_s)

    @asynccontextmanager
    async def reading(self, path: str, user: str) -> AsyncIterator[FileSource]:
        """An open file of the guest; leaving the context closes the connection."""
        url = f"{self._url}/files?{_file_query(path, user)}"
        headers = {**self._headers, "accept-encoding": "identity"}
        limit = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=FILE_IDLE_TIMEOUT_S)
        try:
            answer = await self._session.get(url, headers=headers, timeout=limit)
        except TimeoutError as error:
            raise Timeout("The guest did not open the file in time.", slug="guest_timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _gone(error) from error
        try:
            if answer.status != 200:
                raise _file_error(answer.status, await answer.read())
            yield FileSource(answer.content, answer.content_length)
        finally:
            answer.close()  # not released: an unread rest must not be read for the sake of keep-alive

    async def write(self, path: str, user: str, content: bytes | AsyncIterator[bytes]) -> None:
        """Write a file of the guest, creating its parents. Raises what the guest's /files says."""
        url = f"{self._url}/files?{_file_query(path, user)}"
        headers = {**self._headers, "content-type": "application/octet-stream"}
        limit = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
        try:
            async with self._session.post(url, data=content, headers=headers, timeout=limit) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, WrennError):  # raised by the source of the content
                raise error.__cause__ from error
            raise _gone(error) from error
        if answer.status not in (200, 204):
            raise _file_error(answer.status, body)


class FileSource:
    """An open file: its size, if known, and its bytes."""

    def __init__(self, content: aiohttp.StreamReader, size: int | None) -> None:
        self._content = content
        self.size = size

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file in pieces of at most 64 KiB."""
        while True:
            try:
                chunk = await self._content.read(CHUNK_BYTES)
            except TimeoutError as error:
                raise Timeout("The guest stopped sending the file.", slug="guest_timeout") from error
            except (aiohttp.ClientError, OSError) as error:
                raise _gone(error) from error
            if not chunk:
                return
            yield chunk


def _file_query(path: str, user: str) -> str:
    return urlencode({"path": path, "username": user} if user else {"path": path})


def _file_error(status: int, body: bytes) -> WrennError:
    try:
        data = json.loads(body)
        message, slug = str(data["message"]), str(data.get("error_code", ""))
    except (ValueError, KeyError, TypeError):
        message, slug = f"The guest answered with status {status}.", ""
    cls, default = _FILE_ERRORS.get(status, (Bug if status < 500 else Unavailable, "guest_error"))
    return cls(message, slug=slug or default)


def _gone(error: Exception) -> Unavailable:
    return Unavailable(
        f"The sandbox's guest does not answer ({type(error).__name__}); look at the sandbox's state.",
        slug="guest_unreachable",
    )


def _rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()
