"""The control plane on every database it supports: the same walk through the API."""

from __future__ import annotations

from pathlib import Path

from tests.platform.controlplane.conftest import Plane, agent_thread, control_plane, until


def test_the_walk_through_the_api(database_url: str, tmp_path: Path) -> None:
    with (
        agent_thread(tmp_path / "guest") as (agent, url),
        control_plane(tmp_path, agent, url, database_url) as plane,
    ):
        first = plane.create(metadata={'a "b"': "ü%", "n": "1"}, ends_in_sec=60, network={"egress": "closed"})
        second = plane.create(metadata={"n": "2"})
        page = plane.client.get("/v1/sandboxes?limit=1").json()
        assert [item["id"] for item in page["items"]] == [second]
        page = plane.client.get("/v1/sandboxes", params={"limit": 1, "cursor": page["next_cursor"]}).json()
        assert [item["id"] for item in page["items"]] == [first] and "next_cursor" not in page
        found = plane.client.get("/v1/sandboxes", params={'metadata.a "b"': "ü%"}).json()["items"]
        assert [item["id"] for item in found] == [first] and found[0]["network"]["egress"] == "closed"
        ran = plane.client.post(f"/v1/sandboxes/{first}/exec", json={"cmd": "echo", "args": ["hi"]})
        assert ran.json()["stdout"] == "hi\n"
        assert plane.client.patch(f"/v1/sandboxes/{first}", json={"timeout_sec": 5}).json()["timeout_sec"] == 5
        assert plane.client.post(f"/v1/sandboxes/{first}/ping").status_code == 204
        key = plane.client.post("/v1/api-keys", json={"name": "x"}).json()
        assert plane.client.delete(f"/v1/api-keys/{key['id']}").status_code == 204
        walk_through_moments(plane, first)
        agent.machines[second].status, agent.machines[second].reason_slug = "error", "vmm_died"
        until(lambda: plane.status(second) == "error")
        for sandbox in (first, second):
            assert plane.client.delete(f"/v1/sandboxes/{sandbox}").status_code == 204
        assert plane.client.get("/v1/sandboxes").json() == {"items": []}
        assert "Traceback" not in plane.log()


def walk_through_moments(plane: Plane, sandbox: str) -> None:
    """Pause, resume, snapshot twice under one name, fork, roll back, and what is made of a snapshot."""
    path = f"/v1/sandboxes/{sandbox}"
    paused = plane.client.post(f"{path}/pause").json()
    assert paused["status"] == "paused"
    assert plane.client.post(f"{path}/resume", json={"timeout_sec": 9}).json()["timeout_sec"] == 9
    asked = {"sandbox_id": sandbox, "name": "n"}
    codes = [
        plane.client.post(f"/v1/snapshots{query}", json=asked).status_code for query in ("", "", "?overwrite=true")
    ]
    assert codes == [201, 409, 201]
    children = plane.client.post(f"{path}/fork", json={"count": 2}).json()["items"]
    history = plane.client.get(f"{path}/snapshots").json()["items"]
    assert [moment["kind"] for moment in history] == ["pause", "snapshot", "snapshot", "fork"]
    assert [moment.get("name") for moment in history] == [None, None, "n", None] and history[3]["current"]
    assert plane.client.post(f"{path}/rollback", json={"snapshot": paused["build_id"]}).status_code == 200
    child = plane.create(template="n", vcpus=8)
    assert plane.client.get(f"/v1/sandboxes/{child}").json()["vcpus"] == 1
    assert plane.client.delete("/v1/snapshots/n").status_code == 204
    for one in (child, *(c["id"] for c in children)):
        assert plane.client.delete(f"/v1/sandboxes/{one}").status_code == 204
