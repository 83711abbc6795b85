"""A real agent process over the fake VMM, and a client. On leaving, nothing of it may be left on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import aiohttp
import pytest

from tests.leaks import Footprint
from tests.shim import compile_shim
from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.rpc.channel import Channel
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "platform-test-token-0123456789"
Answer = TypeVar("Answer")
SERVICE = "hostagent.v1.HostAgentService"


@dataclass(frozen=True)
class Agent:
    """A running agent."""

    process: subprocess.Popen[bytes]
    url: str
    data_dir: Path

    def log(self) -> str:
        return (self.data_dir / "agent.log").read_text()

    def resident_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])


@dataclass(frozen=True)
class Client:
    """Calls to it."""

    agent: Agent
    channel: Channel
    session: aiohttp.ClientSession

    async def create(self, **fields: object) -> pb.CreateSandboxResponse:
        wanted = {"vcpus": 1, "memory_mb": 512, "access_token": "t" * 32, "sandbox_id": f"sb-{uuid4()}"} | fields
        request = pb.CreateSandboxRequest(**wanted)
        return await self.channel.unary("CreateSandbox", request, pb.CreateSandboxResponse)

    async def call(self, method: str, request: object, answer: type[Answer]) -> Answer:
        return await self.channel.unary(method, request, answer)

    async def pause(self, sandbox_id: str, build_id: str = "") -> pb.Build:
        request = pb.PauseSandboxRequest(sandbox_id=sandbox_id, build_id=build_id or str(uuid4()))
        answer = await self.call("PauseSandbox", request, pb.PauseSandboxResponse)
        assert answer.build is not None
        return answer.build

    async def resume(self, sandbox_id: str, build_id: str, **fields: object) -> pb.ResumeSandboxResponse:
        wanted = {"access_token": "t" * 32, "sandbox_id": sandbox_id, "build_id": build_id} | fields
        request = pb.ResumeSandboxRequest(sandbox_id=sandbox_id, sandbox=pb.CreateSandboxRequest(**wanted))
        return await self.call("ResumeSandbox", request, pb.ResumeSandboxResponse)

    async def snapshot(self, sandbox_id: str, template_id: str, **fields: object) -> pb.Build:
        named = {"sandbox_id": sandbox_id, "template_id": template_id, "build_id": str(uuid4()), "name": "n"} | fields
        request = pb.CreateSnapshotRequest(**named)
        answer = await self.call("CreateSnapshot", request, pb.CreateSnapshotResponse)
        assert answer.build is not None
        return answer.build

    async def fork(self, sandbox_id: str, count: int) -> pb.ForkSandboxResponse:
        children = [pb.CreateSandboxRequest(sandbox_id=f"sb-{uuid4()}", access_token="c" * 32) for _ in range(count)]
        request = pb.ForkSandboxRequest(sandbox_id=sandbox_id, build_id=str(uuid4()), children=children)
        return await self.call("ForkSandbox", request, pb.ForkSandboxResponse)

    async def rollback(self, sandbox_id: str, build_id: str) -> pb.RollbackSandboxResponse:
        request = pb.RollbackSandboxRequest(sandbox_id=sandbox_id, build_id=build_id)
        return await self.call("RollbackSandbox", request, pb.RollbackSandboxResponse)

    async def builds(self) -> dict[str, pb.Build]:
        answer = await self.call("ListBuilds", pb.ListBuildsRequest(), pb.ListBuildsResponse)
        return {build.build_id: build for build in answer.builds}

    async def drain(self, **fields: object) -> pb.DrainResponse:
        async with self.channel.server_stream("Drain", pb.DrainRequest(**fields), pb.DrainResponse) as answers:
            return [answer async for answer in answers][-1]

    async def destroy(self, sandbox_id: str) -> None:
        request = pb.DestroySandboxRequest(sandbox_id=sandbox_id)
        await self.channel.unary("DestroySandbox", request, pb.DestroySandboxResponse)

    async def listed(self) -> dict[str, pb.SandboxInfo]:
        answer = await self.channel.unary("ListSandboxes", pb.ListSandboxesRequest(), pb.ListSandboxesResponse)
        return {info.sandbox_id: info for info in answer.sandboxes}

    async def exec(self, sandbox_id: str, cmd: str, *args: str, **fields: object) -> pb.ExecResponse:
        request = pb.ExecRequest(sandbox_id=sandbox_id, cmd=cmd, args=list(args), **fields)
        return await self.channel.unary("Exec", request, pb.ExecResponse)

    async def ended(self, sandbox_id: str, limit_s: float = 20) -> pb.SandboxInfo:
        """Wait until the sandbox runs no more."""
        async with asyncio.timeout(limit_s):
            while (info := (await self.listed())[sandbox_id]).status not in {"stopped", "paused", "error"}:
                await asyncio.sleep(0.05)
        return info

    @asynccontextmanager
    async def sandbox(self, **fields: object) -> AsyncIterator[str]:
        created = await self.create(**fields)
        try:
            yield created.sandbox_id
        finally:
            await self.destroy(created.sandbox_id)


@pytest.fixture(scope="session")
def exec_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    catalog = Catalog(tmp_path_factory.mktemp("images"))
    catalog.set_current(ArtefactSet("r", "k", "6.1", "i", "t", "rootfs"))
    rootfs = catalog.rootfs("rootfs")
    rootfs.parent.mkdir(parents=True)
    rootfs.write_bytes(bytes(1 << 20))
    return catalog.root


@pytest.fixture(scope="session")
def start_agent(exec_shim: Path, images: Path) -> Callable[..., Agent]:
    def start(*options: str, data_dir: Path) -> Agent:
        ready, token = data_dir / "ready.json", data_dir / "token"
        ready.unlink(missing_ok=True)
        token.write_text(TOKEN + "\n")
        command = [
            *(sys.executable, "-m", "wrenn_sandbox.hostagent", "--driver", "fake", "--listen", "127.0.0.1:0"),
            *("--data-dir", str(data_dir), "--images-dir", str(images), "--tag", f"t{os.getpid() % 10000}"),
            *("--token-file", str(token), "--ready-file", str(ready), *options),
        ]
        with (data_dir / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"WRENN_EXEC_SHIM": str(exec_shim)}
            )
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < deadline, (data_dir / "agent.log").read_text()
            time.sleep(0.02)
        return Agent(process, json.loads(ready.read_text())["url"], data_dir)

    return start


def stop(agent: Agent) -> int:
    agent.process.send_signal(signal.SIGTERM)
    try:
        return agent.process.wait(60)
    finally:
        agent.process.kill()
        agent.process.wait()


@contextmanager
def clean(data_dir: Path) -> Iterator[None]:
    before = Footprint.take()
    yield
    left = Footprint.take().left_behind(before)
    # The fake has no business with the rest, and others who use this machine may be making theirs.
    assert {kind: names for kind, names in left.items() if kind in {"processes", "descriptors"}} == {}
    assert list((data_dir / "run").iterdir()) == []
    assert [path.name for path in (data_dir / "builds").glob(".*")] == []


@pytest.fixture(scope="module")
def shared_agent(start_agent: Callable[..., Agent], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for the tests of a module."""
    data_dir = tmp_path_factory.mktemp("agent")
    with clean(data_dir):
        running = start_agent(data_dir=data_dir)
        try:
            yield running
        finally:
            code = stop(running)
        assert code == 0, running.log()


@pytest.fixture
def agent(shared_agent: Agent) -> Iterator[Agent]:
    """The module's agent, on which each test must leave nothing but the record of what died."""
    yield shared_agent
    asyncio.run(_destroy_all(shared_agent))
    assert list((shared_agent.data_dir / "run").glob("sb-*")) == []


async def _destroy_all(agent: Agent) -> None:
    async with connected(agent) as client:
        for sandbox_id in await client.listed():
            await client.destroy(sandbox_id)


@asynccontextmanager
async def connected(agent: Agent) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {TOKEN}"}) as session:
        yield Client(agent, Channel(session, agent.url, SERVICE), session)


@pytest.fixture
def run(agent: Agent) -> Callable[[Callable[[Client], Awaitable[None]]], None]:
    """Run a test's coroutine with a client of the agent."""

    def run_it(work: Callable[[Client], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(120), connected(agent) as client:
                await work(client)

        asyncio.run(bounded())

    return run_it


async def eventually(holds: Callable[[], object], what: str) -> None:
    """Wait, with a generous end, until something that must come true is true."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.02)
    assert holds(), f"never came true: {what}"


def vmm_pid(agent: Agent, sandbox_id: str) -> int:
    """The process of a sandbox's VMM."""
    return json.loads((agent.data_dir / "run" / sandbox_id / "vmm" / "vmm.json").read_text())["pid"]
