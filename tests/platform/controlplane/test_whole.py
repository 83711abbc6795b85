"""Control plane and the real host agent over the fake VMM: the whole way of a request, with a real guest daemon."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.leaks import Footprint
from tests.platform.controlplane.conftest import Plane, control_plane, until
from tests.platform.controlplane.standin import TOKEN, StandIn
from tests.platform.controlplane.test_sockets import opened, terminal_text, text_of
from tests.shim import compile_shim
from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.image.catalog import Catalog

pytestmark = pytest.mark.platform

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Agent:
    """A running host agent."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path


def started(folder: Path, listen: str = "127.0.0.1:0") -> Agent:
    """A host agent over the fake VMM, ready."""
    ready = folder / "agent.json"
    ready.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "wrenn_sandbox.hostagent", "--driver", "fake", "--listen", listen),
        *(
            "--data-dir",
            str(folder / "data"),
            "--images-dir",
            str(folder / "images"),
            "--tag",
            f"c{os.getpid() % 9999}",
        ),
        *("--token-file", str(folder / "agent.token"), "--ready-file", str(ready)),
    ]
    environment = os.environ | {"WRENN_EXEC_SHIM": str(folder / "exec-shim")}
    with (folder / "agent.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    until(lambda: ready.exists() or process.poll() is not None)
    assert process.poll() is None, (folder / "agent.log").read_text()
    return Agent(process, json.loads(ready.read_text())["url"], folder / "agent.log")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything a host agent over the fake VMM needs."""
    folder = tmp_path_factory.mktemp("whole")
    compile_shim(folder)
    catalog = Catalog(folder / "images")
    catalog.set_current(ArtefactSet("r", "k", "6.1", "i", "t", "rootfs"))
    catalog.rootfs("rootfs").parent.mkdir(parents=True)
    catalog.rootfs("rootfs").write_bytes(bytes(1 << 20))
    (folder / "data").mkdir()
    (folder / "agent.token").write_text(TOKEN)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[Plane]:
    """Both processes."""
    before = Footprint.take()
    agent = started(folder)
    try:
        with control_plane(folder, StandIn(folder), agent.url) as plane:
            yield plane
            for item in plane.client.get("/v1/sandboxes").json()["items"]:
                plane.client.delete(f"/v1/sandboxes/{item['id']}")
    finally:
        agent.process.send_signal(signal.SIGTERM)
        code = agent.process.wait(60)
    assert code == 0, agent.log.read_text()
    until(lambda: not {"processes", "descriptors"} & Footprint.take().left_behind(before).keys(), limit_s=10)


@pytest.fixture
def sandbox(whole: Plane) -> Iterator[str]:
    """A running sandbox."""
    sandbox = whole.create(envs={"FROM": "create"})
    yield sandbox
    whole.client.delete(f"/v1/sandboxes/{sandbox}")


def run(plane: Plane, sandbox: str, cmd: str, *args: str, **more: object) -> dict[str, Any]:
    answer = plane.client.post(f"/v1/sandboxes/{sandbox}/exec", json={"cmd": cmd, "args": args, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_commands(whole: Plane, sandbox: str) -> None:
    ran = run(whole, sandbox, "sh", "-c", "echo $FROM $HERE; cat; exit 7", stdin="input", envs={"HERE": "exec"})
    assert (ran["stdout"], ran["exit_code"]) == ("create exec\ninput", 7)
    assert run(whole, sandbox, "no-such-program")["exit_code"] == 127
    slow = run(whole, sandbox, "sh", "-c", "echo before; sleep 600", timeout_sec=1)
    assert slow["stdout"] == "before\n" and slow["interrupted"] and slow["exit_code"] != 0
    assert run(whole, sandbox, "sh", "-c", "sleep 600 & echo done")["stdout"] == "done\n"


def test_commands_that_cannot_be(whole: Plane, sandbox: str) -> None:
    path = f"/v1/sandboxes/{sandbox}/exec"
    for body in ({"user": "nobody-of-that-name"}, {"cwd": "/no/such/folder"}):
        answer = whole.client.post(path, json={"cmd": "true", **body})
        assert 400 <= answer.status_code < 500 and answer.json()["error"]["message"], answer.text


def test_files(whole: Plane, sandbox: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    base, content = f"/v1/sandboxes/{sandbox}/files", os.urandom(3 << 20)
    path = str(tmp_path / "new" / "ü.bin")
    assert whole.client.put(base, params={"path": path, "user": "root"}, content=content).status_code == 204
    assert Path(path).read_bytes() == content
    read = whole.client.get(base, params={"path": path, "user": "root"})
    assert hashlib.sha256(read.content).digest() == hashlib.sha256(content).digest()
    assert code_of(whole.client.get(base, params={"path": str(tmp_path / "none")}))[0] == 404
    assert code_of(whole.client.get(base, params={"path": str(tmp_path)}))[0] == 400
    assert code_of(whole.client.get(base, params={"path": "/dev/zero"}))[0] == 400


def test_processes_and_streams(whole: Plane, sandbox: str) -> None:
    path = f"/v1/sandboxes/{sandbox}"
    body = {"cmd": "sh", "args": ["-c", "sleep 1; echo late; sleep 600"], "background": True, "tag": "mine"}
    pid = whole.client.post(f"{path}/exec", json=body).json()["pid"]
    assert [p["tag"] for p in whole.client.get(f"{path}/processes").json()["processes"]] == ["mine"]
    with opened(whole, f"{path}/processes/mine/stream") as socket:
        seen = socket.until("stdout")
        assert seen[0] == {"type": "start", "pid": pid} and text_of(seen) == "late\n"
        assert whole.client.delete(f"{path}/processes/{pid}?signal=SIGTERM").status_code == 204
        assert socket.until("exit")[-1]["exit_code"] != 0
    assert code_of(whole.client.delete(f"{path}/processes/mine")) == (404, "process_not_found")
    with opened(whole, f"{path}/exec/stream") as socket:
        socket.send(type="start", cmd="sh", args=["-c", "echo on; sleep 600"])
        socket.until("stdout")
        socket.send(type="stop")
        assert socket.until("exit")[-1]["exit_code"] != 0


def test_a_terminal(whole: Plane, sandbox: str) -> None:
    with opened(whole, f"/v1/sandboxes/{sandbox}/pty") as socket:
        socket.send(type="start", cmd="/bin/sh", cols=99, rows=33)
        socket.send(type="input", data=base64.b64encode(b"stty size; exit 5\n").decode())
        seen = socket.until("exit")
        assert b"33 99" in terminal_text(seen) and seen[-1]["exit_code"] == 5
    with opened(whole, f"/v1/sandboxes/{sandbox}/pty") as socket:
        socket.send(type="start", cmd="/bin/sh")
        tag = socket.until("started")[-1]["tag"]
    with opened(whole, f"/v1/sandboxes/{sandbox}/pty") as socket:
        socket.send(type="connect", tag=tag)
        socket.send(type="resize", cols=50, rows=20)
        socket.send(type="input", data=base64.b64encode(b"stty size\n").decode())
        seen = []
        while b"20 50" not in terminal_text(seen):
            seen += socket.until("output")
        socket.send(type="kill")
        assert socket.until("exit")[-1]["exit_code"] != 0
    with opened(whole, f"/v1/sandboxes/{sandbox}/pty") as socket:
        socket.send(type="start", cmd="/no/such/shell")
        assert socket.until("exit", "error")[-1]


def test_a_port_by_its_name(whole: Plane, sandbox: str) -> None:
    body = {"cmd": sys.executable, "args": ["-m", "http.server", "0"], "cwd": "/", "background": True, "tag": "web"}
    assert whole.client.post(f"/v1/sandboxes/{sandbox}/exec", json=body).status_code == 202
    closed = whole.client.get("/", headers={"Host": f"1-{sandbox}.sbx.test"})
    assert closed.status_code == 502 and closed.json()["message"] == "The sandbox is running but port is not open"
    assert closed.json()["sandboxId"] == sandbox and closed.json()["port"] == 1


def test_a_vmm_that_dies_is_an_error_within_seconds_and_disturbs_no_other(whole: Plane, sandbox: str) -> None:
    other = whole.create()
    # Over the fake VMM the guest's daemon, parent of its commands, is the machine.
    machine = int(run(whole, other, "sh", "-c", "echo $PPID")["stdout"])
    assert machine not in (1, os.getpid(), whole.process.pid)
    os.kill(machine, signal.SIGKILL)
    until(lambda: whole.status(other) == "error")
    row = whole.client.get(f"/v1/sandboxes/{other}").json()
    assert row["status_reason"] and row["status_slug"]
    assert code_of(whole.client.post(f"/v1/sandboxes/{other}/exec", json={"cmd": "true"})) == (409, "invalid_state")
    assert run(whole, sandbox, "true")["exit_code"] == 0
    assert whole.client.delete(f"/v1/sandboxes/{other}").status_code == 204


def test_idle_and_deadline_end_it_with_their_reason(whole: Plane) -> None:
    idle = whole.create(timeout_sec=1, idle_action="kill")
    ending = whole.create(ends_in_sec=2)
    for sandbox in (idle, ending):
        until(lambda sandbox=sandbox: whole.status(sandbox) == "stopped")
    slugs = [whole.client.get(f"/v1/sandboxes/{s}").json()["status_slug"] for s in (idle, ending)]
    assert len(set(slugs)) == 2 and all(slugs)
