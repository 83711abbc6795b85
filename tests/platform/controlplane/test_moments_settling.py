"""Paused sandboxes, builds and templates are what the host has, also when a control plane was killed in the middle."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.platform.controlplane.conftest import Plane, agent_thread, control_plane, until
from tests.platform.controlplane.standin import Machine, StandIn
from tests.platform.controlplane.test_moments import get, names, post, row, settle
from tests.platform.controlplane.test_reconciling import write
from wrenn_sandbox.core.errors import Exhausted, Unavailable
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

pytestmark = pytest.mark.platform

OWN = "44444444-4444-4444-8444-444444444444"


def test_a_pause_by_the_host_itself_is_learned_and_a_paused_one_is_never_touched(plane: Plane) -> None:
    sandbox = plane.create(timeout_sec=60, idle_action="pause", ends_in_sec=3600, deadline_action="pause")
    lifetime = plane.agent.machines[sandbox].request.lifetime
    assert lifetime is not None
    assert lifetime.idle_action == lifetime.deadline_action == pb.TimeoutAction.PAUSE
    plane.agent.paused(sandbox, OWN)
    plane.agent.machines[sandbox].reason_slug = "idle_timeout"
    found = settle(plane, sandbox, "paused")
    assert (found["build_id"], found["status_slug"]) == (f"bld-{OWN}", "idle_timeout")
    hidden = plane.agent.machines.pop(sandbox)
    began = len(plane.agent.calls)
    until(lambda: plane.agent.calls[began:].count("ListSandboxes") >= 5)
    assert row(plane, sandbox) == found
    plane.agent.machines[sandbox] = hidden
    assert post(plane, f"/v1/sandboxes/{sandbox}/resume")["status"] == "running"
    assert [m["id"] for m in get(plane, f"/v1/sandboxes/{sandbox}/snapshots")["items"]] == [f"bld-{OWN}"]


def test_a_dead_machine_goes_back_only_when_its_user_says_so(plane: Plane) -> None:
    sandbox, other = plane.create(), plane.create()
    for one in (sandbox, other):
        post(plane, f"/v1/sandboxes/{one}/pause")
        post(plane, f"/v1/sandboxes/{one}/resume")
    died, lost = plane.agent.machines[sandbox], plane.agent.machines[other]
    died.status, died.reason, died.reason_slug = "error", "Its VMM was killed by signal 9.", "vmm_died"
    lost.status = "paused"  # what an agent knows after its machine's crash: no more than its disk
    for one, slug in ((sandbox, "vmm_died"), (other, "sandbox_lost")):
        found = settle(plane, one, "error")
        assert found["status_slug"] == slug and "resume it" in found["status_reason"] and found["build_id"]
    time.sleep(11)  # longer than what has no right to be there may stay
    assert set(plane.agent.machines) == {sandbox, other} and {sandbox, other} <= set(plane.agent.holds)
    assert plane.status(sandbox) == plane.status(other) == "error"
    for one in (sandbox, other):
        assert post(plane, f"/v1/sandboxes/{one}/resume")["status"] == "running"
        assert "status_reason" not in row(plane, one)


def test_what_is_nobodys_on_the_host_goes(plane: Plane) -> None:
    kept, orphan = plane.create(), plane.create()
    for sandbox in (kept, orphan):
        post(plane, f"/v1/sandboxes/{sandbox}/pause")
    write(plane, "UPDATE sandboxes SET status = 'stopped' WHERE id = ?", str(SandboxId.parse(orphan).value))
    plane.agent.fail["DeleteSnapshot"] = Unavailable("no answer")
    post(plane, "/v1/snapshots", {"sandbox_id": kept, "name": "n"}, 201)
    assert plane.client.delete("/v1/snapshots/n").status_code == 204
    assert any(holder.startswith("tpl-") for holder in plane.agent.holds)
    until(lambda: plane.agent.calls.count("DeleteSnapshot") == 2)
    plane.agent.fail.clear()
    until(lambda: set(plane.agent.machines) == {kept} and set(plane.agent.holds) == {kept})
    assert plane.status(kept) == "paused"


def interrupted(folder: Path, agent: StandIn, url: str, prepare: Callable[[Plane], Any], rpc: str, ask: Any) -> Any:
    """Kill a control plane while the agent is at work for it; what ``prepare`` gave."""
    with control_plane(folder, agent, url) as plane:
        prepared = prepare(plane)
        method, path, body = ask(prepared)
        agent.delay_s[rpc] = 1.0

        def call() -> None:
            with pytest.raises(httpx.TransportError):
                plane.client.request(method, path, json=body)

        caller = threading.Thread(target=call)
        caller.start()
        until(lambda: rpc in agent.calls)
        plane.process.send_signal(signal.SIGKILL)
        caller.join()
    agent.delay_s.clear()
    return prepared


def a_running_one(plane: Plane) -> str:
    return plane.create()


def a_paused_one(plane: Plane) -> str:
    sandbox = plane.create()
    post(plane, f"/v1/sandboxes/{sandbox}/pause")
    plane.agent.calls.clear()
    return sandbox


def one_with_a_history(plane: Plane) -> str:
    sandbox = plane.create()
    for name in ("then", "later"):
        post(plane, "/v1/snapshots", {"sandbox_id": sandbox, "name": name}, 201)
    return sandbox


@pytest.mark.parametrize("happened", [True, False], ids=["it was done", "it was not done"])
def test_a_killed_control_plane_leaves_what_the_next_one_settles(tmp_path: Path, happened: bool) -> None:
    """Every intent is settled both ways: pausing, resuming, a snapshot, the children of a fork and a roll back."""
    cases: list[tuple[Callable[[Plane], str], str, Callable[[str], tuple[str, str, object]]]] = [
        (a_running_one, "PauseSandbox", lambda s: ("POST", f"/v1/sandboxes/{s}/pause", None)),
        (a_paused_one, "ResumeSandbox", lambda s: ("POST", f"/v1/sandboxes/{s}/resume", None)),
        (a_running_one, "CreateSnapshot", lambda s: ("POST", "/v1/snapshots", {"sandbox_id": s, "name": "n"})),
        (
            a_running_one,
            "CreateSnapshot",
            lambda s: ("POST", "/v1/snapshots", {"sandbox_id": s, "name": "m", "leave_paused": True}),
        ),
        (a_running_one, "ForkSandbox", lambda s: ("POST", f"/v1/sandboxes/{s}/fork", {"count": 3})),
        (
            one_with_a_history,
            "RollbackSandbox",
            lambda s: ("POST", f"/v1/sandboxes/{s}/rollback", {"snapshot": "then"}),
        ),
    ]
    with agent_thread(tmp_path / "guest") as (agent, url):
        made = []
        for prepare, rpc, ask in cases:
            agent.calls.clear()
            if not happened:
                agent.fail[rpc] = Exhausted("full")
            made.append(interrupted(tmp_path, agent, url, prepare, rpc, ask))
            until(lambda: agent.working == 0)
            agent.fail.clear()
        pausing, resuming, named, left, forked, back = made
        if not happened:
            del agent.machines[resuming]  # the agent may not even know it any more
            agent.machines[resuming] = Machine(
                pb.CreateSandboxRequest(), status="paused", build_id=agent.holds[resuming]
            )
        with control_plane(tmp_path, agent, url) as plane:
            settle(plane, pausing, "paused" if happened else "running")
            settle(plane, resuming, "running" if happened else "paused")
            settle(plane, left, "paused" if happened else "running")
            until(lambda: set(names(plane)) - {"then", "later"} == ({"n", "m"} if happened else set()))
            assert plane.status(named) == plane.status(forked) == plane.status(back) == "running"
            until(lambda: intended(plane) == 0)
            moments = get(plane, f"/v1/sandboxes/{back}/snapshots")["items"]
            assert [m["name"] for m in moments if m["current"]] == ["then" if happened else "later"]
            assert row(plane, back)["host_ip"] == ("10.11.0.4" if happened else "10.11.0.1")
            wanted = "running" if happened else "error"
            until(lambda: len(get(plane, f"/v1/sandboxes?state={wanted}")["items"]) == (4 + 3 if happened else 3))
            assert get(plane, "/v1/sandboxes?state=pending,pausing,resuming")["items"] == []
            # Everything can be used at once, and the names are free or stand for what they say.
            post(plane, f"/v1/sandboxes/{forked}/fork", {"count": 1}, 201)
            again = {"sandbox_id": named, "name": "n"}
            until(lambda: plane.client.post("/v1/snapshots", json=again).status_code == (409 if happened else 201))
            if happened:
                plane.create(template="m")
            for sandbox in (pausing, resuming, left):
                verb = "resume" if plane.status(sandbox) == "paused" else "pause"
                post(plane, f"/v1/sandboxes/{sandbox}/{verb}")
            assert "Traceback" not in plane.log()


def intended(plane: Plane) -> int:
    """How many rows state an intent that is not settled."""
    with closing(sqlite3.connect(plane.folder / "wrenn.db", timeout=10)) as database:
        query = "SELECT count(*) FROM sandboxes WHERE intended_build_id IS NOT NULL"
        return int(database.execute(query).fetchone()[0])


def test_of_a_fork_that_agent_and_control_plane_died_in_no_child_stays(tmp_path: Path) -> None:
    with agent_thread(tmp_path / "guest") as (agent, url):
        ask = lambda s: ("POST", f"/v1/sandboxes/{s}/fork", {"count": 3})  # noqa: E731
        source = interrupted(tmp_path, agent, url, a_running_one, "ForkSandbox", ask)
        until(lambda: agent.working == 0)
        assert len(agent.machines) == 4
        del agent.machines[next(s for s in agent.machines if s != source)]  # the agent died before it was born
        with control_plane(tmp_path, agent, url) as plane:
            until(lambda: len(get(plane, "/v1/sandboxes?state=error")["items"]) == 3)
            failed = get(plane, "/v1/sandboxes?state=error")["items"]
            assert {(f["status_slug"], "build_id" in f) for f in failed} == {("fork_interrupted", False)}
            until(lambda: set(agent.machines) == {source})
            assert plane.status(source) == "running" and intended(plane) == 0
            post(plane, f"/v1/sandboxes/{source}/fork", {"count": 3}, 201)


def test_the_work_of_another_database_outlives_this_one(tmp_path: Path) -> None:
    with agent_thread(tmp_path / "guest") as (agent, url):
        with control_plane(tmp_path, agent, url) as plane:
            sandbox = a_paused_one(plane)
            post(plane, "/v1/snapshots", {"sandbox_id": sandbox, "name": "n"}, 201)
        kept = dict(agent.holds)
        with control_plane(tmp_path, agent, url, f"sqlite:///{tmp_path / 'wrong.db'}") as wrong:
            until(lambda: wrong.log().count("does not know") == 2)
            assert "DestroySandbox" not in agent.calls and "DeleteSnapshot" not in agent.calls
        assert agent.holds == kept
        (tmp_path / "api.key").write_text(plane.key)
        with control_plane(tmp_path, agent, url) as right:
            assert post(right, f"/v1/sandboxes/{sandbox}/resume")["status"] == "running"
            right.create(template="n")


def test_none_of_this_was_an_accident(plane: Plane) -> None:
    assert "Traceback" not in plane.log() and "unexpected" not in plane.log()
