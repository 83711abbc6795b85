from __future__ import annotations

import asyncio

import pytest

from tests.unit.controlplane.conftest import running
from tests.unit.controlplane.moments import obedient
from wrenn_sandbox.core.ids import SandboxId


def test_pause_resume_fork_and_back(api) -> None:
    async def main() -> None:
        async with api() as (w, client):
            w.agent.answers["CreateSandbox"] = running
            obedient(w)
            made = (await client.post("/v1/sandboxes", json={"metadata": {"a": "b"}})).json()
            path = f"/v1/sandboxes/{made['id']}"
            paused = await client.post(f"{path}/pause")
            assert (paused.status_code, paused.json()["status"]) == (200, "paused")
            moment = paused.json()["build_id"]
            resumed = (await client.post(f"{path}/resume", json={"timeout_sec": 0, "idle_action": "kill"})).json()
            assert (resumed["status"], resumed["timeout_sec"], resumed["idle_action"]) == ("running", 0, "kill")
            forked = await client.post(f"{path}/fork", json={"count": 2, "timeout_sec": 9})
            assert forked.status_code == 201 and len(forked.json()["items"]) == 2
            assert {(c["metadata"]["a"], c["timeout_sec"]) for c in forked.json()["items"]} == {("b", 9)}
            listed = (await client.get(f"{path}/snapshots")).json()["items"]
            assert (listed[0]["id"], listed[0]["kind"], listed[0]["current"]) == (moment, "pause", False)
            assert listed[1]["kind"] == "fork" and listed[1]["current"] and "name" not in listed[1]
            assert listed[0]["size_bytes"] == 7 and listed[0]["sandbox_id"] == made["id"]
            back = await client.post(f"{path}/rollback", json={"snapshot": moment})
            assert (back.status_code, back.json()["id"], back.json()["status"]) == (200, made["id"], "running")
            capsule = f"/v1/capsules/cl-{SandboxId.parse(made['id']).base36}"
            (first, *_) = (await client.get(f"{capsule}/snapshots")).json()["items"]
            assert first["sandbox_id"] == capsule.rsplit("/", 1)[1]
            (child,) = (await client.post(f"{capsule}/fork", json={})).json()["items"]
            assert child["id"].startswith("cl-")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rest", "body"),
    [
        ("fork", {"count": 0}),
        ("fork", {"count": 101}),
        ("fork", {"count": "2"}),
        ("fork", {"number": 2}),
        ("rollback", {}),
        ("rollback", {"snapshot": ""}),
        ("rollback", {"snapshot": "x" * 201}),
        ("resume", {"timeout_sec": -1}),
        ("resume", {"ends_at": "2001-01-01T00:00:00Z"}),
        ("resume", []),
    ],
)
def test_bodies_that_cannot_be(api, rest: str, body: object) -> None:
    async def main() -> None:
        async with api() as (w, client):
            w.agent.answers["CreateSandbox"] = running
            made = (await client.post("/v1/sandboxes", json={})).json()
            answer = await client.post(f"/v1/sandboxes/{made['id']}/{rest}", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
            assert [name for name, _ in w.agent.calls] == ["CreateSandbox"]

    asyncio.run(main())
