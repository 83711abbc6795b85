"""A Connect client of the process service, on the bare JSON wire as the public SDKs speak it."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from .conftest import MARK, Guest

Json = dict[str, Any]


class RpcError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def envelope(message: Json) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack(">BI", 0, len(body)) + body


@dataclass
class Outcome:
    """All of one stream."""

    pid: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    pty: bytes = b""
    end: Json | None = None
    keepalives: int = 0
    sizes: list[int] = field(default_factory=list)

    @property
    def code(self) -> int:
        assert self.end is not None
        return self.end.get("exitCode", 0)

    def add(self, event: Json) -> None:
        if "start" in event:
            self.pid = event["start"]["pid"]
        for name, text in event.get("data", {}).items():
            data = base64.b64decode(text)
            self.sizes.append(len(data))
            setattr(self, name, getattr(self, name) + data)
        self.end = event.get("end", self.end)
        self.keepalives += "keepalive" in event


class Stream:
    """An open server stream: events one by one."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def event(self) -> Json | None:
        """The next event, None after the last; RpcError when the stream ends with one."""
        flags, length = struct.unpack(">BI", await self.response.content.readexactly(5))
        message = json.loads(await self.response.content.readexactly(length))
        if flags & 2:
            if "error" in message:
                raise RpcError(message["error"]["code"], message["error"].get("message", ""))
            return None
        return message["event"]

    async def rest(self, outcome: Outcome | None = None) -> Outcome:
        outcome = outcome or Outcome()
        while (event := await self.event()) is not None:
            outcome.add(event)
        return outcome


class Client:
    """Calls on one guest."""

    def __init__(self, guest: Guest, session: aiohttp.ClientSession) -> None:
        self.guest = guest
        self.session = session

    async def call(self, method: str, body: Json, headers: dict[str, str] | None = None) -> Json:
        url = f"{self.guest.url}/process.Process/{method}"
        async with self.session.post(url, json=body, headers=headers) as response:
            answer = await response.json()
            if response.status != 200:
                raise RpcError(answer["code"], answer.get("message", ""))
            return answer

    @asynccontextmanager
    async def open(self, method: str, body: Json, headers: dict[str, str] | None = None) -> AsyncIterator[Stream]:
        url = f"{self.guest.url}/process.Process/{method}"
        headers = {"content-type": "application/connect+json", **(headers or {})}
        async with self.session.post(url, data=envelope(body), headers=headers) as response:
            assert response.status == 200, await response.text()
            yield Stream(response)

    @asynccontextmanager
    async def start(
        self, *command: str, headers: dict[str, str] | None = None, **request: Any
    ) -> AsyncIterator[Stream]:
        process = {"cmd": command[0], "args": list(command[1:]), **request.pop("process", {})}
        process["envs"] = {MARK: self.guest.mark, **process.get("envs", {})}
        async with self.open("Start", {"process": process, **request}, headers) as stream:
            yield stream

    async def run(self, *command: str, headers: dict[str, str] | None = None, **request: Any) -> Outcome:
        """Start and read to the end; without stdin, as the SDKs do it."""
        async with self.start(*command, headers=headers, **{"stdin": False, **request}) as stream:
            return await stream.rest()

    async def sh(self, script: str, **request: Any) -> Outcome:
        return await self.run("/bin/sh", "-c", script, **request)

    async def send(self, pid: int, data: bytes, kind: str = "stdin") -> None:
        await self.call("SendInput", {"process": {"pid": pid}, "input": {kind: base64.b64encode(data).decode()}})

    async def signal(self, pid: int, name: str) -> None:
        await self.call("SendSignal", {"process": {"pid": pid}, "signal": name})

    async def error_of(self, call: Awaitable[object]) -> str:
        """The code of the error that the call must end with."""
        try:
            answer = await call
        except RpcError as error:
            return error.code
        raise AssertionError(f"no error but {answer}")


async def pid_of(stream: Stream) -> int:
    """The pid from the first event."""
    event = await stream.event()
    assert event is not None and set(event) == {"start"}, event
    return int(event["start"]["pid"])


async def until(stream: Stream, outcome: Outcome, text: bytes) -> None:
    """Read on until ``text`` was printed."""
    while text not in outcome.stdout + outcome.stderr + outcome.pty:
        event = await stream.event()
        assert event is not None, outcome
        outcome.add(event)


def talk(guest: Guest, work: Callable[[Client], Awaitable[None]]) -> None:
    """Run a conversation with a guest, at most two minutes long."""

    async def bounded() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with asyncio.timeout(120), aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await work(Client(guest, session))

    asyncio.run(bounded())
