"""What needs no database; everything else is in tests/contract/test_db.py, on both."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.db import sandboxes


@pytest.mark.parametrize("wrong", [(State.STOPPED, State.RUNNING), (State.ERROR, State.RUNNING)])
def test_a_move_the_lifecycle_does_not_know_never_reaches_the_database(wrong: tuple[State, State]) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    with pytest.raises(ValueError, match="no way"):
        asyncio.run(
            sandboxes.move(Untouchable(), SandboxId(UUID(int=1)), {wrong[0]}, wrong[1])  # type: ignore[arg-type]
        )


def test_ended_states_are_those_without_a_machine() -> None:
    assert {State.STOPPED, State.ERROR} == sandboxes.ENDED
    assert sandboxes.Page(1).states == frozenset(State) - sandboxes.ENDED


def test_secrets_do_not_show() -> None:
    from tests.contract.test_db import new_sandbox
    from wrenn_sandbox.core.ids import TeamId

    shown = repr(new_sandbox(TeamId(UUID(int=1)), access_token="hidden-token", envs={"KEY": "hidden-env"}))
    assert "hidden" not in shown
