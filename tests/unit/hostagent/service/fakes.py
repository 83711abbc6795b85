"""A registry with one sandbox whose guest is a script of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from uuid import UUID

from protobuf import Oneof

from wrenn_sandbox.core.errors import NotFound
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.hostagent.guest_processes import Command
from wrenn_sandbox.rpc.gen.envd import process_pb

ID = SandboxId(UUID("11111111-2222-4333-8444-555555555555"))
CONTEXT = SimpleNamespace(timeout_ms=None)


def started(pid: int) -> process_pb.ProcessEvent:
    return process_pb.ProcessEvent(event=Oneof("start", process_pb.ProcessEvent.StartEvent(pid=pid)))


def data(stream: str, content: bytes) -> process_pb.ProcessEvent:
    return process_pb.ProcessEvent(
        event=Oneof("data", process_pb.ProcessEvent.DataEvent(output=Oneof(stream, content)))
    )


def ended(code: int) -> process_pb.ProcessEvent:
    return process_pb.ProcessEvent(
        event=Oneof("end", process_pb.ProcessEvent.EndEvent(exit_code=code, exited=True, error="e" if code else None))
    )


KEEPALIVE = process_pb.ProcessEvent(event=Oneof("keepalive", process_pb.ProcessEvent.KeepAlive()))


@dataclass
class Processes:
    """Plays ``script``: events, errors to raise, or None to hang."""

    script: list[object] = field(default_factory=list)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    error: Exception | None = None

    @asynccontextmanager
    async def start(self, command: Command, *, lifetime_s: float | None = None) -> AsyncIterator[object]:
        self.calls.append(("start", command, lifetime_s))
        yield self._play()

    @asynccontextmanager
    async def connect(self, process: object) -> AsyncIterator[object]:
        self.calls.append(("connect", process))
        yield self._play()

    async def _play(self) -> AsyncIterator[object]:
        for step in self.script:
            await asyncio.sleep(0)
            if isinstance(step, Exception):
                raise step
            if step is None:
                await asyncio.Event().wait()
            yield step

    async def running(self) -> list[object]:
        return [
            process_pb.ProcessInfo(config=process_pb.ProcessConfig(cmd="a", args=["b"]), pid=5, tag="t"),
            process_pb.ProcessInfo(pid=6),
        ]

    async def _call(self, *what: object) -> None:
        self.calls.append(what)
        if self.error is not None:
            raise self.error

    async def send_input(self, process: object, content: bytes, *, terminal: bool = False) -> None:
        await self._call("input", process, content, terminal)

    async def close_stdin(self, process: object) -> None:
        await self._call("close", process)

    async def resize(self, process: object, size: object) -> None:
        await self._call("resize", process, size)

    async def signal(self, process: object, number: object) -> None:
        await self._call("signal", process, number)


@dataclass
class Source:
    pieces: list[bytes]
    size: int | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


@dataclass
class Registry:
    """Knows one sandbox."""

    processes: Processes = field(default_factory=Processes)
    source: Source = field(default_factory=lambda: Source([]))
    written: list[tuple[str, str, bytes]] = field(default_factory=list)
    in_use: int = 0
    uses: int = 0

    def get(self, sandbox_id: SandboxId) -> Registry:
        if sandbox_id != ID:
            raise NotFound("no such sandbox", slug="sandbox_not_found")
        return self

    @asynccontextmanager
    async def use(self) -> AsyncIterator[object]:
        self.in_use += 1
        self.uses += 1
        try:
            yield SimpleNamespace(
                guest=SimpleNamespace(processes=self.processes, reading=self.reading, write=self.write)
            )
        finally:
            self.in_use -= 1

    @asynccontextmanager
    async def reading(self, path: str, user: str) -> AsyncIterator[Source]:
        yield self.source

    async def write(self, path: str, user: str, content: bytes | AsyncIterator[bytes]) -> None:
        whole = content if isinstance(content, bytes) else b"".join([piece async for piece in content])
        self.written.append((path, user, whole))
