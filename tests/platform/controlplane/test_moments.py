"""Pause, resume, snapshots, fork and rollback over HTTP and processes: what callers get, whatever fails or dies."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from tests.platform.controlplane.conftest import Plane, until
from tests.platform.controlplane.test_api import error_of
from wrenn_sandbox.core.errors import Exhausted, NoSpace, Unavailable, WrennError

pytestmark = pytest.mark.platform


def get(plane: Plane, path: str) -> Any:
    answer = plane.client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(plane: Plane, path: str, body: object = None, status: int = 200) -> Any:
    answer = plane.client.post(path, json=body) if body is not None else plane.client.post(path)
    assert answer.status_code == status, answer.text
    return answer.json()


def names(plane: Plane) -> list[str]:
    return [item["name"] for item in get(plane, "/v1/snapshots?type=snapshot")]


def row(plane: Plane, sandbox: str) -> dict[str, Any]:
    return get(plane, f"/v1/sandboxes/{sandbox}")


def settle(plane: Plane, sandbox: str, status: str) -> dict[str, Any]:
    until(lambda: plane.status(sandbox) == status)
    return row(plane, sandbox)


def test_a_sandbox_is_paused_and_resumed(plane: Plane) -> None:
    sandbox = plane.create(metadata={"a": "b"}, envs={"X": "1"}, network={"egress": "closed"}, timeout_sec=60)
    path, before = f"/v1/sandboxes/{sandbox}", plane.agent.machines[sandbox].request
    paused = post(plane, f"{path}/pause")
    assert paused["status"] == "paused" and "host_ip" not in paused and paused["build_id"].startswith("bld-")
    assert error_of(plane.client.post(f"{path}/pause")) == (409, "invalid_state")
    assert error_of(plane.client.post(f"{path}/exec", json={"cmd": "true"})) == (409, "invalid_state")
    assert error_of(plane.client.patch(path, json={"timeout_sec": 9})) == (409, "invalid_state")
    resumed = post(plane, f"{path}/resume")
    assert (resumed["status"], resumed["timeout_sec"], resumed["host_ip"]) == ("running", 60, "10.11.0.2")
    assert error_of(plane.client.post(f"{path}/resume")) == (409, "invalid_state")
    after = plane.agent.machines[sandbox].request
    for name in ("access_token", "default_env", "network", "lifetime", "team_id", "template_id", "template", "vcpus"):
        assert getattr(after, name) == getattr(before, name), name
    assert plane.client.post(f"{path}/exec", json={"cmd": "true"}).json()["exit_code"] == 0
    post(plane, f"{path}/pause")
    assert post(plane, f"{path}/resume", {"timeout_sec": 7, "ends_in_sec": 50})["timeout_sec"] == 7
    post(plane, f"{path}/pause")
    assert plane.client.delete(path).status_code == 204
    assert plane.agent.machines == {} and plane.agent.builds == {}


def test_new_sandboxes_come_of_a_named_moment(plane: Plane) -> None:
    source = plane.create(vcpus=2, memory_mb=1024, envs={"COLOUR": "blue"})
    taken = post(plane, "/v1/snapshots", {"sandbox_id": source, "name": "moment"}, 201)
    assert (taken["type"], taken["vcpus"], taken["memory_mb"]) == ("snapshot", 2, 1024)
    assert plane.status(source) == "running"
    children = [post(plane, "/v1/sandboxes", {"template": "moment", "vcpus": v}, 201) for v in (1, 8, 10_000)]
    assert {(child["vcpus"], child["memory_mb"]) for child in children} == {(2, 1024)}
    tokens = {machine.request.access_token for machine in plane.agent.machines.values()}
    assert len(tokens) == 4
    ran = plane.client.post(
        f"/v1/sandboxes/{children[0]['id']}/exec", json={"cmd": "sh", "args": ["-c", "echo $COLOUR"]}
    )
    assert ran.json()["stdout"] == "blue\n"
    assert plane.client.delete("/v1/snapshots/moment").status_code == 204
    assert error_of(plane.client.delete("/v1/snapshots/moment")) == (404, "snapshot_not_found")
    assert error_of(plane.client.post("/v1/sandboxes", json={"template": "moment"})) == (404, "template_not_found")
    assert plane.status(children[1]["id"]) == "running" and names(plane) == []
    assert error_of(plane.client.delete("/v1/snapshots/base")) == (403, "forbidden")


def test_a_name_never_stands_for_something_older_than_was_said(plane: Plane) -> None:
    source = plane.create()
    asked = {"sandbox_id": source, "name": "n"}
    first = post(plane, "/v1/snapshots", asked, 201)
    assert error_of(plane.client.post("/v1/snapshots", json=asked)) == (409, "already_exists")
    assert error_of(plane.client.post("/v1/snapshots", json=asked | {"name": "base"})) == (409, "name_reserved")
    plane.agent.fail["CreateSnapshot"] = NoSpace("The host's disk is full.", slug="host_disk_full")
    assert error_of(plane.client.post("/v1/snapshots?overwrite=true", json=asked)) == (507, "host_disk_full")
    assert get(plane, "/v1/snapshots?type=snapshot") == [first]
    plane.agent.fail.clear()
    second = post(plane, "/v1/snapshots?overwrite=true", asked, 201)
    assert get(plane, "/v1/snapshots?type=snapshot") == [second] and second["build_id"] != first["build_id"]
    child = plane.create(template="n")
    assert plane.agent.machines[child].current == second["build_id"].removeprefix("bld-")
    until(lambda: [h for h in plane.agent.holds if h.startswith("tpl-")] == [second["id"]])
    post(plane, "/v1/snapshots", asked | {"name": "m", "leave_paused": True}, 201)
    assert plane.status(source) == "paused"
    assert post(plane, "/v1/snapshots", asked | {"name": "k"}, 201)["build_id"] == row(plane, source)["build_id"]


def test_children_and_the_way_back(plane: Plane) -> None:
    source = plane.create(metadata={"a": "b"})
    path = f"/v1/sandboxes/{source}"
    post(plane, "/v1/snapshots", {"sandbox_id": source, "name": "before"}, 201)
    children = post(plane, f"{path}/fork", {"count": 100, "timeout_sec": 0}, 201)["items"]
    assert len({child["id"] for child in children}) == 100
    assert {(c["status"], c["timeout_sec"], c["metadata"]["a"]) for c in children} == {("running", 0, "b")}
    assert len({plane.agent.machines[c["id"]].request.access_token for c in children}) == 100
    before, fork = get(plane, f"{path}/snapshots")["items"]
    assert (before["name"], before["kind"], before["current"]) == ("before", "snapshot", False)
    assert (fork["parent_id"], fork["kind"], fork["current"]) == (before["id"], "fork", True)
    child = children[0]["id"]
    assert [m["id"] for m in get(plane, f"/v1/sandboxes/{child}/snapshots")["items"]] == [before["id"], fork["id"]]
    for moment in ("before", fork["id"], before["id"]):
        back = post(plane, f"{path}/rollback", {"snapshot": moment})
        assert (back["id"], back["status"], back["host_ip"]) == (source, "running", "10.11.0.4")
    assert [m["current"] for m in get(plane, f"{path}/snapshots")["items"]] == [True, False]
    post(plane, f"/v1/sandboxes/{child}/rollback", {"snapshot": "before"})
    assert error_of(plane.client.post(f"{path}/rollback", json={"snapshot": "x"})) == (404, "snapshot_not_found")
    post(plane, f"{path}/pause")
    assert post(plane, f"{path}/rollback", {"snapshot": "before"})["status"] == "running"
    assert plane.agent.machines[source].current == before["id"].removeprefix("bld-")
    post(plane, f"{path}/pause")
    assert len(post(plane, f"{path}/fork", {"count": 2}, 201)["items"]) == 2 and plane.status(source) == "paused"


FAILURES = (Exhausted("Full."), NoSpace("Full.", slug="host_disk_full"), Unavailable("No answer."))


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: error.slug)
def test_what_fails_leaves_everything_as_it_was(plane: Plane, failure: WrennError) -> None:
    running, paused = plane.create(), plane.create()
    for sandbox in (running, paused):
        post(plane, "/v1/snapshots", {"sandbox_id": sandbox, "name": f"of-{sandbox[-4:]}"}, 201)
    post(plane, f"/v1/sandboxes/{paused}/pause")
    before = [row(plane, running), row(plane, paused)]
    held, templates = dict(plane.agent.holds), names(plane)
    calls: list[tuple[str, str, str, dict[str, object]]] = [
        ("PauseSandbox", running, "pause", {}),
        ("ResumeSandbox", paused, "resume", {"timeout_sec": 1}),
        ("ForkSandbox", running, "fork", {"count": 3}),
        ("ForkSandbox", paused, "fork", {"count": 3}),
        ("RollbackSandbox", running, "rollback", {"snapshot": f"of-{running[-4:]}"}),
        ("ResumeSandbox", paused, "rollback", {"snapshot": f"of-{paused[-4:]}"}),
    ]
    for rpc, sandbox, verb, body in calls:
        plane.agent.fail[rpc] = failure
        answer = plane.client.post(f"/v1/sandboxes/{sandbox}/{verb}", json=body)
        assert error_of(answer)[1] == failure.slug
        # Where no answer came, the host is asked before anything is said.
        until(lambda sandbox=sandbox: plane.status(sandbox) == ("running" if sandbox == running else "paused"))
    for leave_paused in (False, True):
        plane.agent.fail["CreateSnapshot"] = failure
        body = {"sandbox_id": running, "name": f"new-{leave_paused}", "leave_paused": leave_paused}
        assert error_of(plane.client.post("/v1/snapshots", json=body))[1] == failure.slug
    after = [row(plane, running), row(plane, paused)]
    # Without an answer nobody can say that the new timeouts do not count.
    changes = {"last_updated"} | ({"timeout_sec"} if isinstance(failure, Unavailable) else set())
    for old, new in zip(before, after, strict=True):
        assert {k: v for k, v in old.items() if k not in changes} == {k: v for k, v in new.items() if k not in changes}
    assert plane.agent.holds == held and names(plane) == templates
    assert set(plane.agent.machines) == {running, paused} and "DestroySandbox" not in plane.agent.calls
    # And it can be done again.
    plane.agent.fail.clear()
    for _, sandbox, verb, body in calls[:2]:
        post(plane, f"/v1/sandboxes/{sandbox}/{verb}", body)


def leave(plane: Plane, method: str, path: str, body: object, rpc: str) -> None:
    """Ask for something and go away while the agent is at it."""
    plane.agent.delay_s[rpc] = 1.0
    seen = len(plane.agent.calls)
    client = httpx.Client(base_url=plane.url, headers=plane.client.headers)

    def ask() -> None:
        with pytest.raises(httpx.TransportError):
            client.request(method, path, json=body, timeout=0.4)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: rpc in plane.agent.calls[seen:])
    asking.join()
    client.close()
    plane.agent.delay_s.clear()


def test_whoever_leaves_stops_nothing(plane: Plane) -> None:
    sandbox = plane.create()
    path = f"/v1/sandboxes/{sandbox}"
    leave(plane, "POST", "/v1/snapshots", {"sandbox_id": sandbox, "name": "n"}, "CreateSnapshot")
    until(lambda: names(plane) == ["n"])
    leave(plane, "POST", f"{path}/pause", None, "PauseSandbox")
    settle(plane, sandbox, "paused")
    leave(plane, "POST", f"{path}/resume", None, "ResumeSandbox")
    settle(plane, sandbox, "running")
    leave(plane, "POST", f"{path}/fork", {"count": 3}, "ForkSandbox")
    until(lambda: len(get(plane, "/v1/sandboxes?state=running")["items"]) == 4)
    leave(plane, "POST", f"{path}/rollback", {"snapshot": "n"}, "RollbackSandbox")
    until(lambda: get(plane, f"{path}/snapshots")["items"][0]["current"])
    leave(plane, "DELETE", "/v1/snapshots/n", None, "DeleteSnapshot")
    until(lambda: names(plane) == [] and not any(h.startswith("tpl-") for h in plane.agent.holds))


def test_none_of_this_was_an_accident(plane: Plane) -> None:
    assert "Traceback" not in plane.log() and "unexpected" not in plane.log()
