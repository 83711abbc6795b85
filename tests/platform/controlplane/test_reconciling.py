"""What differs between rows and reality is repaired, also after the control plane itself was killed."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.platform.controlplane.conftest import Plane, agent_thread, control_plane, until
from tests.platform.controlplane.standin import Machine
from tests.platform.controlplane.test_sockets import opened
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

pytestmark = pytest.mark.platform

ORPHAN = "sb-11111111-1111-4111-8111-111111111111"


def write(plane: Plane, sql: str, *values: object) -> None:
    """Change a row behind the control plane's back."""
    database = sqlite3.connect(plane.folder / "wrenn.db", timeout=10)
    with database:
        database.execute(sql, values)
    database.close()


def test_every_difference_is_repaired(plane: Plane) -> None:
    died, idle, lost, paused, renewed = (plane.create() for _ in range(5))
    machines = plane.agent.machines
    machines[died].status, machines[died].reason = "error", "Its VMM was killed by signal 9."
    machines[died].reason_slug = "vmm_died"
    machines[idle].status, machines[idle].reason_slug = "stopped", "idle_timeout"
    del machines[lost]
    del machines[paused]
    write(plane, "UPDATE sandboxes SET status = 'paused' WHERE id = ?", str(SandboxId.parse(paused).value))
    machines[renewed].lifetime = pb.Lifetime(idle_timeout_s=1)
    machines[ORPHAN] = Machine(pb.CreateSandboxRequest(sandbox_id=ORPHAN))

    began = time.monotonic()
    until(lambda: plane.status(died) == "error")
    row = plane.client.get(f"/v1/sandboxes/{died}").json()
    assert (row["status_reason"], row["status_slug"]) == ("Its VMM was killed by signal 9.", "vmm_died")
    until(lambda: plane.status(idle) == "stopped")
    assert plane.client.get(f"/v1/sandboxes/{idle}").json()["status_slug"] == "idle_timeout"
    until(lambda: (wanted := machines[renewed].lifetime) is not None and wanted.idle_timeout_s == 300)
    until(lambda: plane.status(lost) == "error")
    assert plane.client.get(f"/v1/sandboxes/{lost}").json()["status_slug"] == "sandbox_lost"
    until(lambda: set(machines) == {renewed})  # what has no right to be there is gone, what died included
    assert time.monotonic() - began > 5, "nothing may be believed lost at first sight"
    assert plane.status(paused) == "paused" and plane.status(renewed) == "running"
    write(plane, "UPDATE sandboxes SET status = 'stopped' WHERE id = ?", str(SandboxId.parse(paused).value))


def test_a_guest_that_waits_for_room_says_so_while_it_does(plane: Plane) -> None:
    sandbox, other = plane.create(), plane.create()
    read = lambda of: plane.client.get(f"/v1/sandboxes/{of}").json()  # noqa: E731
    plane.agent.machines[sandbox].stalled = "host_disk_full"
    until(lambda: read(sandbox).get("stalled") == "host_disk_full")
    assert (read(sandbox)["status"], "stalled" in read(other)) == ("running", False)
    plane.agent.machines[sandbox].stalled = ""
    until(lambda: "stalled" not in read(sandbox))


def test_a_sandbox_in_the_making_says_what_it_waits_for(plane: Plane) -> None:
    plane.agent.delay_s["CreateSandbox"] = 6
    maker = threading.Thread(target=lambda: plane.client.post("/v1/sandboxes", json={}))
    maker.start()
    until(lambda: "preparing" in plane.client.get("/v1/sandboxes?state=pending").text)
    maker.join()
    (row,) = plane.client.get("/v1/sandboxes").json()["items"]
    assert row["status"] == "running" and "status_reason" not in row


def test_a_killed_control_plane_leaves_what_the_next_one_finishes(tmp_path: Path) -> None:
    with agent_thread(tmp_path / "guest") as (agent, url):
        with control_plane(tmp_path, agent, url) as first:
            key = first.key
            kept, dying = first.create(), first.create()
            agent.delay_s |= {"CreateSandbox": 3, "DestroySandbox": 3}

            def interrupted(method: str, path: str) -> None:
                with pytest.raises(httpx.TransportError):
                    first.client.request(method, path, json={} if method == "POST" else None)

            callers = [
                threading.Thread(target=interrupted, args=("POST", "/v1/sandboxes")),
                threading.Thread(target=interrupted, args=("DELETE", f"/v1/sandboxes/{dying}")),
            ]
            for caller in callers:
                caller.start()
            until(lambda: len(agent.machines) == 3 and "DestroySandbox" in agent.calls)
            first.process.send_signal(signal.SIGKILL)
            for caller in callers:
                caller.join()
        (made,) = set(agent.machines) - {kept, dying}
        agent.delay_s.clear()
        until(lambda: agent.machines[made].status == "running")
        with control_plane(tmp_path, agent, url) as second:
            assert second.key == key
            assert second.client.get(f"/v1/sandboxes/{kept}").json()["status"] == "running"
            until(lambda: second.status(made) == "running")
            until(lambda: second.status(dying) == "stopped")
            assert set(agent.machines) == {kept, made}
            ran = second.client.post(f"/v1/sandboxes/{made}/exec", json={"cmd": "true"})
            assert ran.json()["exit_code"] == 0


def test_without_its_host_agent_it_serves_and_says_so(tmp_path: Path) -> None:
    with agent_thread(tmp_path / "guest") as (agent, url):
        stack = control_plane(tmp_path, agent, url)
        plane = stack.__enter__()
        sandbox, paused, source = plane.create(), plane.create(), plane.create()
        assert plane.client.post(f"/v1/sandboxes/{paused}/pause").status_code == 200
        assert plane.client.post("/v1/snapshots", json={"sandbox_id": source, "name": "n"}).status_code == 201
    try:
        for method, path, body in (
            ("POST", "/v1/sandboxes", {}),
            ("POST", f"/v1/sandboxes/{sandbox}/exec", {"cmd": "true"}),
            ("GET", "/v1/hosts/current", None),
            ("GET", f"/v1/sandboxes/{sandbox}/files?path=x", None),
            ("PUT", f"/v1/sandboxes/{sandbox}/files?path=x", None),
            ("DELETE", f"/v1/sandboxes/{sandbox}", None),
            ("POST", f"/v1/sandboxes/{source}/pause", None),
            ("POST", f"/v1/sandboxes/{paused}/resume", None),
            ("POST", f"/v1/sandboxes/{paused}/fork", {"count": 2}),
            ("POST", f"/v1/sandboxes/{source}/rollback", {"snapshot": "n"}),
            ("POST", "/v1/snapshots", {"sandbox_id": source, "name": "m"}),
        ):
            answer = plane.client.request(method, path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "host_unavailable"), path
            assert int(answer.headers["retry-after"]) > 0
        failed = plane.client.get("/v1/sandboxes?state=error").json()["items"]
        assert [item["status_slug"] for item in failed] == ["host_unavailable"] * 3
        # It was never asked, so all is as it was, and can be asked for again.
        assert (plane.status(source), plane.status(paused)) == ("running", "paused")
        assert [item["name"] for item in plane.client.get("/v1/snapshots?type=snapshot").json()] == ["n"]
        assert plane.client.delete("/v1/snapshots/n").status_code == 204
        assert plane.status(sandbox) == "stopping"  # it will be, when the host is back
        assert plane.client.get("/health").status_code == 200
        assert "Traceback" not in plane.log()
    finally:
        stack.__exit__(None, None, None)


def test_it_stops_although_sockets_and_transfers_are_open(tmp_path: Path) -> None:
    with agent_thread(tmp_path / "guest") as (agent, url), control_plane(tmp_path, agent, url) as plane:
        sandbox = plane.create()
        (agent.root / "large").write_bytes(bytes(256 << 20))
        with (
            opened(plane, f"/v1/sandboxes/{sandbox}/exec/stream") as socket,
            plane.client.stream("GET", f"/v1/sandboxes/{sandbox}/files", params={"path": "large"}) as answer,
        ):
            socket.send(type="start", cmd="sleep", args=["600"])
            socket.until("start")
            next(answer.iter_bytes(65536))
            plane.process.send_signal(signal.SIGTERM)
            assert plane.process.wait(30) == 0
        assert not [line for line in plane.log().splitlines() if "Traceback" in line]


def test_a_lost_key_file_is_made_anew(tmp_path: Path) -> None:
    with agent_thread(tmp_path / "guest") as (agent, url):
        with control_plane(tmp_path, agent, url) as first:
            old = first.key
            assert (tmp_path / "api.key").stat().st_mode & 0o777 == 0o600
        (tmp_path / "api.key").unlink()
        with control_plane(tmp_path, agent, url) as second:
            assert second.key != old
            assert second.client.get("/v1/sandboxes", headers={"X-API-Key": old}).status_code == 200


def test_a_control_plane_that_is_told_nonsense_says_so(tmp_path: Path) -> None:
    import subprocess
    import sys

    for flags, wanted in (
        (["--listen", "nowhere"], "--listen"),
        (["--agent-url", "ftp://x"], "--agent-url"),
        (["--listen", "127.0.0.1:0", "--database-url", "mysql://x/y"], "SQLite or PostgreSQL"),
        (["--listen", "127.0.0.1:0", "--database-url", f"sqlite:///{tmp_path}/no/such/dir/db"], "database"),
    ):
        command = [sys.executable, "-m", "wrenn_sandbox.controlplane", "--agent-token-file", "/dev/null", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and wanted in done.stderr and "Traceback" not in done.stderr, done.stderr
