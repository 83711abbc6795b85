"""A real control plane process over a stand-in host agent that lives in a thread of the test."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.leaks import Footprint
from tests.platform.controlplane.standin import TOKEN, StandIn, serving

LIMIT_S = 60.0


@dataclass
class Plane:
    """A running control plane and a client with its first key."""

    folder: Path
    agent: StandIn
    agent_url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    @property
    def key(self) -> str:
        return self.client.headers["x-api-key"]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def create(self, **body: object) -> str:
        """A running sandbox's id."""
        answer = self.client.post("/v1/sandboxes", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def status(self, sandbox: str) -> str:
        return self.client.get(f"/v1/sandboxes/{sandbox}").json()["status"]

    def rss_kib(self) -> int:
        """Resident memory of the control plane now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait for a condition; the limit only ends a test that hangs."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@contextmanager
def agent_thread(folder: Path) -> Iterator[tuple[StandIn, str]]:
    """A stand-in agent, serving from a thread."""
    folder.mkdir(exist_ok=True)
    agent, urls = StandIn(folder), []
    started, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        async with serving(agent) as url:
            urls.append(url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert started.wait(LIMIT_S)
    try:
        yield agent, urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        loop.close()


@contextmanager
def control_plane(folder: Path, agent: StandIn, agent_url: str, database_url: str = "") -> Iterator[Plane]:
    """A control plane process; ended with SIGTERM, it must exit with 0."""
    (folder / "token").write_text(TOKEN)
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    flags = {
        "database-url": database_url or f"sqlite:///{folder / 'wrenn.db'}",
        "listen": "127.0.0.1:0",
        "agent-url": agent_url,
        "agent-token-file": folder / "token",
        "ready-file": ready,
        "bootstrap-key-file": folder / "api.key",
        "domain": "sbx.test",
    }
    command = [sys.executable, "-m", "wrenn_sandbox.controlplane"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until(lambda: ready.exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        headers = {"X-API-Key": (folder / "api.key").read_text().strip()}
        with httpx.Client(base_url=json.loads(ready.read_text())["url"], headers=headers, timeout=LIMIT_S) as client:
            yield Plane(folder, agent, agent_url, process, client)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    assert code in (0, -signal.SIGKILL), (folder / "log").read_text()


@pytest.fixture(scope="module")
def shared_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """One control plane for the tests of a module; nothing of it may be left."""
    before = Footprint.take()
    folder = tmp_path_factory.mktemp("plane")
    with agent_thread(folder / "guest") as (agent, url), control_plane(folder, agent, url) as plane:
        yield plane

    def left() -> dict[str, list[str]]:
        # Processes of ours may run on this machine for other reasons; this one's is asked for by its number.
        return {kind: names for kind, names in Footprint.take().left_behind(before).items() if kind == "descriptors"}

    until(lambda: left() == {}, limit_s=5)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert str(plane.process.pid) not in children
    assert [p.name for p in folder.iterdir() if p.name.endswith((".new", ".part"))] == []


@pytest.fixture
def plane(shared_plane: Plane) -> Iterator[Plane]:
    """The control plane, with the switches of its agent at rest; afterwards no sandbox may be left."""
    agent = shared_plane.agent
    yield shared_plane
    agent.fail.clear()
    agent.delay_s.clear()
    agent.break_downloads = False
    states = "pending,running,missing,pausing,paused,resuming,stopping,error"
    while items := shared_plane.client.get(f"/v1/sandboxes?state={states}").json()["items"]:
        for item in items:
            assert shared_plane.client.delete(f"/v1/sandboxes/{item['id']}").status_code == 204
    for item in shared_plane.client.get("/v1/snapshots?type=snapshot").json():
        shared_plane.client.delete(f"/v1/snapshots/{item['name']}")
    until(lambda: not (agent.machines or agent.builds or agent.holds))
    agent.calls.clear()
    agent.typed.clear()


@pytest.fixture
def sandbox(plane: Plane) -> str:
    """A running sandbox."""
    return plane.create()
