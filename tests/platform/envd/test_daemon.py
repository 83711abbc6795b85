"""The daemon as a process: tokens, /init, preparation for a snapshot, the exercise, the end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.platform.envd.daemon import ENTROPY, TOKEN, Daemon, running

pytestmark = pytest.mark.platform


@pytest.fixture
def daemon(exec_shim: Path) -> Iterator[Daemon]:
    with running(exec_shim) as started:
        yield started


def start(daemon: Daemon, headers: dict[str, str]) -> httpx.Response:
    return daemon.client.post("/process.Process/List", json={}, headers=headers)


def test_only_health_init_and_prepare_before_there_is_a_token(daemon: Daemon) -> None:
    health = daemon.client.get("/health")
    assert (health.status_code, health.headers["cache-control"]) == (204, "no-store")
    daemon.prepare()
    for headers in ({}, daemon.authorized):
        assert daemon.client.get("/envs", headers=headers).status_code == 401
        assert daemon.client.get("/metrics", headers=headers).status_code == 401
        assert daemon.client.get("/files?path=/etc/hostname", headers=headers).status_code == 401
        assert start(daemon, headers).json()["code"] == "unauthenticated"


def test_with_a_token_everything_needs_it(daemon: Daemon) -> None:
    assert daemon.init().status_code == 204
    for headers, status in (({}, 401), ({"X-Access-Token": "other"}, 401), (daemon.authorized, 200)):
        assert daemon.client.get("/envs", headers=headers).status_code == status
        assert daemon.client.get("/metrics", headers=headers).status_code == status
        assert daemon.client.get("/files?path=/etc/passwd", headers=headers).status_code == status
        assert start(daemon, headers).status_code == status
    assert daemon.client.get("/health").status_code == 204
    daemon.prepare()


def test_init_token_rules(daemon: Daemon) -> None:
    assert daemon.client.post("/init").status_code == 204
    assert daemon.client.get("/envs").status_code == 401  # an empty one opens nothing
    assert daemon.init(entropy=None).json()["error_code"] == "invalid_entropy"
    assert daemon.client.get("/envs", headers=daemon.authorized).status_code == 401
    assert daemon.init().status_code == 204
    assert daemon.init().status_code == 204
    assert daemon.init(accessToken="other").status_code == 401
    assert daemon.client.post("/init").status_code == 401
    assert daemon.client.post("/init", headers=daemon.authorized).status_code == 204
    body = {"accessToken": "other", "entropy": ENTROPY}
    assert daemon.client.post("/init", json=body, headers=daemon.authorized).status_code == 204
    assert daemon.client.get("/envs", headers=daemon.authorized).status_code == 401
    assert daemon.client.get("/envs", headers={"X-Access-Token": "other"}).status_code == 200


def test_init_sets_what_processes_see(daemon: Daemon) -> None:
    fields = {"envVars": {"A": "1"}, "sandboxId": "sb-1", "templateId": "tpl-1", "defaultUser": "nobody"}
    assert daemon.init(timestamp="2026-11-23T12:00:00Z", **fields).status_code == 204
    assert daemon.init(timestamp="2026-11-23T11:00:00Z", envVars={"A": "stale"}).status_code == 204
    envs = daemon.client.get("/envs", headers=daemon.authorized).json()
    expected = {"A": "1", "WRENN_SANDBOX_ID": "sb-1", "E2B_TEMPLATE_ID": "tpl-1", "E2B_SANDBOX": "true"}
    assert {name: envs.get(name) for name in expected} == expected
    refused = daemon.client.get("/files?path=/etc/shadow", headers=daemon.authorized)
    assert refused.json()["error_code"] == "permission_denied"


def test_a_time_in_a_request_does_not_move_the_clock(daemon: Daemon) -> None:
    before = time.time() - time.monotonic()
    assert daemon.init(timestamp="2099-01-01T00:00:00Z").status_code == 204
    assert abs((time.time() - time.monotonic()) - before) < 60


def test_concurrent_inits_are_one_after_another(daemon: Daemon) -> None:
    def send(number: int) -> None:
        stamp = f"2026-11-23T12:00:{number:02}Z"
        with httpx.Client(base_url=daemon.client.base_url) as client:
            body = {"accessToken": TOKEN, "entropy": ENTROPY, "timestamp": stamp, "envVars": {"N": str(number)}}
            assert client.post("/init", json=body).status_code == 204

    threads = [threading.Thread(target=send, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert daemon.client.get("/envs", headers=daemon.authorized).json()["N"] == "19"


def test_preflight_and_origin(daemon: Daemon) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    answer = daemon.client.options("/process.Process/Start", headers=asked)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "*")
    daemon.init()
    for path in ("/files?path=/etc/passwd", "/envs"):
        answer = daemon.client.get(path, headers={**daemon.authorized, "Origin": "https://a.example"})
        assert answer.headers["access-control-allow-origin"] == "*"
    answer = daemon.client.post(
        "/process.Process/List", json={}, headers={**daemon.authorized, "Origin": "https://a.example"}
    )
    assert answer.headers["access-control-allow-origin"] == "*"


def test_metrics(daemon: Daemon) -> None:
    daemon.init()
    metrics = daemon.client.get("/metrics", headers=daemon.authorized).json()
    assert 0 < metrics["mem_used"] < metrics["mem_total"]
    assert 0 < metrics["disk_used"] < metrics["disk_total"]
    assert 0 <= metrics["cpu_used_pct"] <= 100
    assert metrics["cpu_count"] == os.cpu_count()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"POST /init HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_hurts_nobody(daemon: Daemon, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", daemon.client.base_url.port)) as raw:
        raw.sendall(garbage)
        raw.settimeout(20)
        raw.recv(1000)
    assert daemon.client.get("/health").status_code == 204


def test_the_exercise_leaves_a_fresh_daemon(exec_shim: Path, tmp_path: Path) -> None:
    litter = set(Path("/tmp").glob(".envd-*"))
    with running(exec_shim, "--exercise") as daemon:
        assert daemon.client.get("/envs", headers=daemon.authorized).status_code == 401
        assert daemon.socats() == []
        assert daemon.children() == []
        assert daemon.init(timestamp=0).status_code == 204
        processes = daemon.client.post("/process.Process/List", json={}, headers=daemon.authorized)
        assert processes.json() == {}
        log = Path(f"/proc/{daemon.pid}/fd/2").resolve().read_text()
    assert "start-up exercise" not in log  # it says so when a step fails
    assert set(Path("/tmp").glob(".envd-*")) == litter


def test_it_ends_although_streams_are_open(exec_shim: Path, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 30)
    with running(exec_shim) as daemon:
        daemon.init()
        with daemon.client.stream("GET", f"/files?username=root&path={big}", headers=daemon.authorized) as answer:
            pieces = answer.iter_raw(1 << 16)
            next(pieces)
            os.kill(daemon.pid, signal.SIGTERM)
            with pytest.raises(httpx.HTTPError):
                for _ in pieces:
                    time.sleep(0.01)  # slower than the daemon is patient


def test_a_port_that_is_taken_is_said_at_once(exec_shim: Path, daemon: Daemon) -> None:
    import subprocess
    import sys

    taken = str(daemon.client.base_url.port)
    command = [sys.executable, "-m", "wrenn_sandbox.envd", "--not-a-guest", "--host", "127.0.0.1", "--port", taken]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "address already in use" in done.stderr
