"""Pause, resume, snapshots, fork and rollback over HTTP and processes: what callers get, whatever fails or dies."""

from __future__ import annotations

import pytest

from tests.platform.controlplane.conftest import Plane

pytestmark = pytest.mark.platform


def post(plane: Plane, path: str, body: object = None, status: int = 200) -> dict:
    answer = plane.client.post(path, json=body) if body is not None else plane.client.post(path)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_sandbox_is_paused_and_resumed(plane: Plane) -> None:
    sandbox = plane.create(metadata={"a": "b"}, envs={"X": "1"})
    path = f"/v1/sandboxes/{sandbox}"
    token = plane.agent.machines[sandbox].request.access_token
    paused = post(plane, f"{path}/pause")
    assert paused["status"] == "paused" and "host_ip" not in paused and paused["build_id"].startswith("bld-")
    again = plane.client.post(f"{path}/pause")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "invalid_state")
    resumed = post(plane, f"{path}/resume", {"timeout_sec": 7})
    assert (resumed["status"], resumed["timeout_sec"], resumed["host_ip"]) == ("running", 7, "10.11.0.2")
    request = plane.agent.machines[sandbox].request
    assert request.access_token == token and dict(request.default_env) == {"X": "1"}
    assert plane.client.post(f"{path}/exec", json={"cmd": "true"}).json()["exit_code"] == 0
    named = post(plane, "/v1/snapshots", {"sandbox_id": sandbox, "name": "n1"}, 201)
    print(named)
    print(plane.client.get("/v1/snapshots").json())
    print(plane.client.get(f"{path}/snapshots").json())
    print(post(plane, f"{path}/rollback", {"snapshot": "n1"}))
    forked = post(plane, f"{path}/fork", {"count": 3}, 201)["items"]
    print(forked)
    print(plane.create(template="n1", vcpus=800))
    print(plane.client.get(f"{path}/snapshots").json())
    assert plane.client.delete("/v1/snapshots/n1").status_code == 204
