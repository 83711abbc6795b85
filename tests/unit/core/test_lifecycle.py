"""The table of states: what is allowed where, and which moves exist."""

from __future__ import annotations

import pytest

from wrenn_sandbox.core.errors import Conflict
from wrenn_sandbox.core.lifecycle import TRANSITIONS, Action, State, require, verdict


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("action", Action)
def test_every_refusal_says_why(state: State, action: Action) -> None:
    answer = verdict(state, action)
    assert answer.allowed or (state.value in answer.why_not and answer.why_not.endswith("."))


def test_only_a_running_sandbox_can_be_used() -> None:
    assert [s for s in State if verdict(s, Action.USE).allowed] == [State.RUNNING]


def test_everything_but_the_stopped_can_be_destroyed() -> None:
    assert [s for s in State if not verdict(s, Action.DESTROY).allowed] == [State.STOPPED]


def test_require_raises_a_conflict() -> None:
    require(State.RUNNING, Action.PAUSE)
    with pytest.raises(Conflict) as caught:
        require(State.PAUSED, Action.PAUSE)
    assert caught.value.slug == "invalid_state"


def test_every_state_has_its_moves_and_stopped_is_the_end() -> None:
    assert set(TRANSITIONS) == set(State)
    assert TRANSITIONS[State.STOPPED] == frozenset()


def test_every_state_can_be_left_and_reached() -> None:
    reached = {State.PENDING}
    while True:
        more = reached | {to for state in reached for to in TRANSITIONS[state]}
        if more == reached:
            break
        reached = more
    assert reached == set(State)


def test_a_paused_sandbox_never_becomes_an_error_or_missing_by_itself() -> None:
    assert TRANSITIONS[State.PAUSED].isdisjoint({State.ERROR, State.MISSING})
