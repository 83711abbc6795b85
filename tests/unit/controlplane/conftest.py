"""A control plane without processes or sockets: SQLite in a file, and an agent that answers from a script."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event

from wrenn_sandbox.controlplane.app import api as web
from wrenn_sandbox.controlplane.http.edge import Edge
from wrenn_sandbox.controlplane.platform import Contact, Platform
from wrenn_sandbox.controlplane.settling import settling
from wrenn_sandbox.controlplane.usecases.issue_keys import new_key
from wrenn_sandbox.controlplane.usecases.set_up import set_up
from wrenn_sandbox.core.ids import EntityId, HostId, TeamId
from wrenn_sandbox.db import accounts
from wrenn_sandbox.db.engine import Database, open_database
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


@dataclass(frozen=True)
class Origin:
    """A set-up database, to be copied, and what is in it."""

    path: Path
    team: TeamId
    host: HostId
    key: str


@dataclass
class Shelf:
    """Databases and web applications that no test uses now: what SQLAlchemy and FastAPI work out once stays known."""

    folder: Path
    databases: list[tuple[Path, Database]] = field(default_factory=list)
    applications: list[FastAPI] = field(default_factory=list)

    @asynccontextmanager
    async def database(self, origin: Path) -> AsyncIterator[Database]:
        """One with the content of ``origin``; its connections are closed on leaving, and the file goes."""
        path, database = self.databases.pop() if self.databases else await self._new()
        shutil.copy(origin, path)
        try:
            yield database
        finally:
            await database.engine.dispose()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            self.databases.append((path, database))

    async def _new(self) -> tuple[Path, Database]:
        path = self.folder / f"{uuid4().hex}.db"
        async with open_database(f"sqlite:///{path}") as database:
            # The contract tests sync for real; here a disk would only take its time.
            event.listen(database.engine.sync_engine, "connect", _never_sync)
        return path, database

    @contextmanager
    def application(self, platform: Platform | None) -> Iterator[FastAPI]:
        """The API of ``platform``; without one it can only describe itself."""
        application = self.applications.pop() if self.applications else web()
        application.state.platform = platform
        yield application
        self.applications.append(application)


def _never_sync(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous=OFF").close()


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    path = tmp_path_factory.mktemp("db") / "wrenn.db"

    async def main() -> Origin:
        async with open_database(f"sqlite:///{path}") as database:
            host = await set_up(database, "http://agent.test", None)
            async with database.read() as connection:
                found = await accounts.first_owner(connection)
            assert found is not None
            issued = await new_key(database, *found, "test")
        return Origin(path, found[0], host, issued.secret)

    return asyncio.run(main())


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("databases"))


@pytest.fixture
def world(origin: Origin, shelf: Shelf, tmp_path: Path) -> Opener:
    """Opens a fresh world; for use inside ``asyncio.run``."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[World]:
        async with shelf.database(origin.path) as database, settling() as begun:
            agent = ScriptedAgent()
            platform = Platform(database, agent, origin.host, begun, Contact(time.monotonic()))  # type: ignore[arg-type]
            yield World(platform, agent, origin.team, origin.key, tmp_path)

    return open_


@pytest.fixture
def api(world: Opener, shelf: Shelf) -> Opener:
    """Opens a world and an HTTP client of its API that needs no socket."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[tuple[World, httpx.AsyncClient]]:
        async with world() as opened:
            with shelf.application(opened.platform) as application:
                transport = httpx.ASGITransport(Edge(application))
                headers = {"X-API-Key": opened.key}
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://api.test", headers=headers
                ) as client:
                    yield opened, client

    return open_


@pytest.fixture
def bare(shelf: Shelf) -> Iterator[FastAPI]:
    with shelf.application(None) as application:
        yield application


async def all_settled(world: World, *subjects: EntityId) -> None:
    """Wait for the work that was begun about ``subjects``, or about anything."""
    settling = world.platform.settling
    while any(map(settling.is_busy, subjects)) if subjects else settling._busy:
        await asyncio.wait(settling._group._tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)  # what it calls when it is done comes next


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
