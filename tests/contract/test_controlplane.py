"""The control plane on every database it supports: the same walk through the API."""

from __future__ import annotations

from pathlib import Path

from tests.platform.controlplane.conftest import agent_thread, control_plane, until


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
        agent.machines[second].status, agent.machines[second].reason_slug = "error", "vmm_died"
        until(lambda: plane.status(second) == "error")
        for sandbox in (first, second):
            assert plane.client.delete(f"/v1/sandboxes/{sandbox}").status_code == 204
        assert plane.client.get("/v1/sandboxes").json() == {"items": []}
        assert "Traceback" not in plane.log()
