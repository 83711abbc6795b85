"""A control plane without processes or sockets: SQLite in a file, and an agent that answers from a script."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from wrenn_sandbox.controlplane.app import api as web
from wrenn_sandbox.controlplane.http.edge import Edge
from wrenn_sandbox.controlplane.platform import Contact, Platform
from wrenn_sandbox.controlplane.settling import settling
from wrenn_sandbox.controlplane.usecases.issue_keys import new_key
from wrenn_sandbox.controlplane.usecases.set_up import set_up
from wrenn_sandbox.core.ids import HostId, TeamId
from wrenn_sandbox.db import accounts, hosts
from wrenn_sandbox.db.engine import open_database
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


@dataclass
class ScriptedAgent:
    """Answers with what ``answers`` holds for an RPC: a message, an error to raise, a list to stream, or a function."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    closed_streams: list[str] = field(default_factory=list)
    url: str = "http://agent.test"
    bearer: str = "Bearer scripted"

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    async def _answer(self, method: str, request: Any, default: Any) -> Any:
        self.calls.append((method, request))
        answer = self.answers.get(method, default)
        if callable(answer):
            answer = answer(request)
            if isinstance(answer, Awaitable):
                answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def call(self, method: str, request: Any, answer: Any, *, timeout_s: float = 15) -> Any:
        assert 0 < timeout_s <= 90_000
        return await self._answer(method, request, answer())

    async def stream(self, method: str, request: Any, answer: Any) -> AsyncGenerator[Any, None]:
        try:
            for item in await self._answer(method, request, []):
                if isinstance(item, BaseException):
                    raise item
                if item is ...:  # quiet for ever
                    await asyncio.Event().wait()
                yield item
        finally:
            self.closed_streams.append(method)

    async def send_stream(self, method: str, requests: AsyncIterator[Any], answer: Any) -> Any:
        return await self._answer(method, [request async for request in requests], answer())


@dataclass
class World:
    """A platform with a team, its key, and the agent's script."""

    platform: Platform
    agent: ScriptedAgent
    team: TeamId
    key: str
    folder: Path


Opener = Callable[[], Any]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set-up database, to be copied."""
    path = tmp_path_factory.mktemp("db") / "wrenn.db"

    async def main() -> None:
        async with open_database(f"sqlite:///{path}") as database:
            await set_up(database, "http://agent.test", None)

    asyncio.run(main())
    return path


@pytest.fixture
def world(migrated: Path, tmp_path: Path) -> Opener:
    """Opens a fresh world; for use inside ``asyncio.run``."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[World]:
        path = tmp_path / f"{uuid4().hex}.db"
        shutil.copy(migrated, path)
        async with open_database(f"sqlite:///{path}") as database, settling() as begun:
            async with database.write() as connection:
                found = await accounts.first_owner(connection)
                assert found is not None
                host = await hosts.ensure(connection, HostId(uuid4()), "http://agent.test", found[1])
            agent = ScriptedAgent()
            contact = Contact(time.monotonic())
            platform = Platform(database, agent, host, begun, contact)  # type: ignore[arg-type]
            issued = await new_key(database, *found, "test")
            yield World(platform, agent, found[0], issued.secret, tmp_path)

    return open_


@pytest.fixture
def api(world: Opener) -> Opener:
    """Opens a world and an HTTP client of its API that needs no socket."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[tuple[World, httpx.AsyncClient]]:
        async with world() as opened:
            app = httpx.ASGITransport(Edge(web(opened.platform)))
            headers = {"X-API-Key": opened.key}
            async with httpx.AsyncClient(transport=app, base_url="http://api.test", headers=headers) as client:
                yield opened, client

    return open_


def running(request: pb.CreateSandboxRequest) -> pb.CreateSandboxResponse:
    """The answer of an agent that did what it was asked."""
    return pb.CreateSandboxResponse(
        sandbox_id=request.sandbox_id,
        status="running",
        host_ip="10.11.0.1",
        vcpus=request.vcpus,
        memory_mb=request.memory_mb,
        phases=[pb.Phase(name="restore", ms=1.0)],
    )
