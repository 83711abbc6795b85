from __future__ import annotations

import asyncio

import pytest

from tests.unit.controlplane.conftest import running
from tests.unit.controlplane.moments import obedient


def test_a_snapshot_from_create_to_delete(api) -> None:
    async def main() -> None:
        async with api() as (w, client):
            w.agent.answers["CreateSandbox"] = running
            obedient(w)
            made = (await client.post("/v1/sandboxes", json={})).json()
            asked = {"sandbox_id": made["id"], "name": "n.1"}
            answer = await client.post("/v1/snapshots", json=asked)
            taken = answer.json()
            assert answer.status_code == 201
            assert taken.items() >= {"name": "n.1", "type": "snapshot", "vcpus": 1, "memory_mb": 512}.items()
            assert (taken["size_bytes"], taken["platform"]) == (7, False)
            assert (await client.get(f"/v1/sandboxes/{made['id']}")).json()["status"] == "running"
            again = await client.post("/v1/snapshots", json=asked)
            assert (again.status_code, again.json()["error"]["code"]) == (409, "already_exists")
            assert (await client.post("/v1/snapshots?overwrite=true", json=asked)).status_code == 201
            everything = (await client.get("/v1/snapshots")).json()
            assert [(item["name"], item["platform"]) for item in everything] == [("n.1", False), ("base", True)]
            assert "vcpus" not in everything[1], "a base template fixes nothing"
            assert [item["name"] for item in (await client.get("/v1/snapshots?type=base")).json()] == ["base"]
            left = await client.post("/v1/snapshots", json={"sandbox_id": made["id"], "leave_paused": True})
            assert left.status_code == 201 and left.json()["name"].startswith("template-")
            assert (await client.get(f"/v1/sandboxes/{made['id']}")).json()["status"] == "paused"
            for status in (204, 404):
                assert (await client.delete("/v1/snapshots/n.1")).status_code == status
            reserved = await client.delete("/v1/snapshots/base")
            assert (reserved.status_code, reserved.json()["error"]["code"]) == (403, "forbidden")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"sandbox_id": 1}, 400, "invalid_request"),
        ({"sandbox_id": "x", "nmae": "y"}, 400, "invalid_request"),
        ({"sandbox_id": "x", "name": "base"}, 400, "invalid_id"),
        ({"sandbox_id": "ID", "name": "a b"}, 400, "invalid_name"),
        ({"sandbox_id": "ID", "name": "minimal"}, 409, "name_reserved"),
        ({"sandbox_id": "ID", "name": "free"}, 404, "not_found"),
    ],
)
def test_what_is_refused_and_in_which_order(api, body: dict[str, str], status: int, code: str) -> None:
    async def main() -> None:
        async with api() as (w, client):
            unknown = "sb-00000000-0000-4000-8000-000000000000"
            asked = {name: unknown if value == "ID" else value for name, value in body.items()}
            answer = await client.post("/v1/snapshots", json=asked)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert w.agent.calls == []

    asyncio.run(main())


def test_types_are_two(api) -> None:
    async def main() -> None:
        async with api() as (_, client):
            answer = await client.get("/v1/snapshots?type=other")
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")

    asyncio.run(main())
