from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest

from tests.contract.test_db import new_sandbox
from tests.unit.controlplane.conftest import running
from wrenn_sandbox.controlplane.http.v1.sandboxes import _cursor, _position, _states
from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.ids import TeamId
from wrenn_sandbox.core.lifecycle import State


def test_a_cursor_comes_back_to_the_microsecond() -> None:
    row = new_sandbox(TeamId(UUID(int=1)))
    assert _position(_cursor(row)) == (row.created_at, row.id.value)
    assert row.created_at.microsecond


@pytest.mark.parametrize("cursor", ["", "A", "AAAA", "====", "ü", "MjAwMS0wMS0wMXww", "x" * 200])
def test_other_texts_are_no_cursor(cursor: str) -> None:
    with pytest.raises(Invalid) as caught:
        _position(cursor)
    assert caught.value.slug == "invalid_cursor"


def test_states_may_be_repeated_or_listed() -> None:
    assert _states(["running, paused", "error"]) == {State.RUNNING, State.PAUSED, State.ERROR}
    with pytest.raises(Invalid, match="resting"):
        _states(["running,resting"])


def test_defaults_and_deadlines(api) -> None:
    async def main() -> None:
        async with api() as (world, client):
            world.agent.answers["CreateSandbox"] = running
            made = (await client.post("/v1/sandboxes", json={})).json()
            assert (made["timeout_sec"], made["idle_action"], made["deadline_action"]) == (300, "pause", "kill")
            assert "ends_at" not in made and "envs" not in made
            late = "2199-01-01T02:00:00+02:00"
            made = (await client.post("/v1/sandboxes", json={"ends_at": late, "timeout_sec": 0})).json()
            assert datetime.fromisoformat(made["ends_at"]) == datetime(2199, 1, 1, tzinfo=UTC)
            assert made["timeout_sec"] == 0

    asyncio.run(main())


def test_both_prefixes_answer_in_their_form(api) -> None:
    async def main() -> None:
        async with api() as (world, client):
            world.agent.answers["CreateSandbox"] = running
            made = (await client.post("/v1/capsules", json={})).json()
            assert made["id"].startswith("cl-") and len(made["id"]) == 28
            same = (await client.get(f"/v1/sandboxes/{made['id']}")).json()
            assert same["id"].startswith("sb-")
            ran = (await client.post(f"/v1/capsules/{same['id']}/exec", json={"cmd": "true"})).json()
            assert ran["sandbox_id"] == made["id"]

    asyncio.run(main())
