from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import TRANSITIONS, State
from wrenn_sandbox.core.reconcile import (
    UNTOUCHED,
    Decision,
    Destroy,
    Memory,
    Move,
    Note,
    Row,
    Seen,
    SendLifetime,
    Timing,
    decide,
    decide_unreachable,
)
from wrenn_sandbox.core.spec import Lifetime

ONE, TWO = SandboxId(UUID(int=1)), SandboxId(UUID(int=2))
OLD, YOUNG = 3600.0, 1.0
TIMING = Timing()


def row(state: State, *, age_s: float = OLD, busy: bool = False, reason: str = "") -> Row:
    return Row(ONE, state, age_s, Lifetime(), reason, busy)


def once(rows: list[Row], seen: list[Seen]) -> tuple[Decision, ...]:
    return decide(rows, seen, Memory(), 1000.0).decisions


def later(rows: list[Row], seen: list[Seen], after_s: float) -> tuple[Decision, ...]:
    memory = decide(rows, seen, Memory(), 1000.0).memory
    return decide(rows, seen, memory, 1000.0 + after_s).decisions


def test_what_agrees_is_left_alone() -> None:
    assert later([row(State.RUNNING)], [Seen(ONE, State.RUNNING, Lifetime())], 1e6) == ()


def test_a_dead_machine_is_an_error_at_once_with_its_reason() -> None:
    seen = Seen(ONE, State.ERROR, reason="signal 9", slug="vmm_died")
    assert once([row(State.RUNNING)], [seen]) == (Move(ONE, State.RUNNING, State.ERROR, "signal 9", "vmm_died", seen),)


def test_an_idle_timeout_is_a_stop_with_its_reason() -> None:
    (move,) = once([row(State.RUNNING)], [Seen(ONE, State.STOPPED, reason="idle", slug="idle_timeout")])
    assert isinstance(move, Move) and (move.state, move.slug) == (State.STOPPED, "idle_timeout")


@pytest.mark.parametrize("state", [State.RUNNING, State.MISSING])
def test_absence_counts_only_after_a_grace_period(state: State) -> None:
    assert once([row(state)], []) == ()
    assert later([row(state)], [], TIMING.absent_grace_s - 0.1) == ()
    (move,) = later([row(state)], [], TIMING.absent_grace_s)
    assert isinstance(move, Move) and (move.state, move.slug) == (State.ERROR, "sandbox_lost")


def test_absence_is_forgotten_when_it_ends() -> None:
    memory = decide([row(State.RUNNING)], [], Memory(), 0.0).memory
    memory = decide([row(State.RUNNING)], [Seen(ONE, State.RUNNING)], memory, 5.0).memory
    assert decide([row(State.RUNNING)], [], memory, 100.0).decisions == ()


@pytest.mark.parametrize("state", sorted(UNTOUCHED, key=lambda s: s.value))
@pytest.mark.parametrize("seen", [[], [Seen(ONE, State.RUNNING)], [Seen(ONE, State.ERROR)]])
def test_paused_rows_are_never_touched(state: State, seen: list[Seen]) -> None:
    assert later([row(state)], seen, 1e9) == ()


def test_a_pending_row_somebody_works_on_is_left_alone() -> None:
    for seen in ([], [Seen(ONE, State.RUNNING)], [Seen(ONE, State.ERROR)]):
        assert later([row(State.PENDING, busy=True)], seen, 1e6) == ()
        assert once([row(State.PENDING, age_s=YOUNG)], seen) == ()


def test_an_abandoned_pending_row_follows_the_agent() -> None:
    running = Seen(ONE, State.RUNNING, host_ip="10.11.0.1")
    assert once([row(State.PENDING)], [running]) == (Move(ONE, State.PENDING, State.RUNNING, seen=running),)
    (failed,) = once([row(State.PENDING)], [Seen(ONE, State.ERROR, reason="no", slug="x")])
    assert isinstance(failed, Move) and (failed.state, failed.slug) == (State.ERROR, "x")
    (gone,) = once([row(State.PENDING)], [])
    assert isinstance(gone, Move) and (gone.state, gone.slug) == (State.ERROR, "create_interrupted")


def test_a_starting_sandbox_says_what_it_waits_for_once() -> None:
    seen = Seen(ONE, State.STARTING, progress="preparing")
    assert once([row(State.PENDING, busy=True)], [seen]) == (Note(ONE, State.PENDING, "preparing"),)
    assert once([row(State.PENDING, busy=True, reason="preparing")], [seen]) == ()


def test_a_begun_end_is_finished() -> None:
    assert once([row(State.STOPPING)], [Seen(ONE, State.RUNNING)]) == (Destroy(ONE),)
    assert once([row(State.STOPPING)], []) == (Move(ONE, State.STOPPING, State.STOPPED),)
    assert once([row(State.STOPPING, busy=True)], [Seen(ONE, State.RUNNING)]) == ()
    assert once([row(State.STOPPING, busy=True)], []) == ()


def test_what_has_no_row_is_destroyed_after_a_grace_period() -> None:
    seen = [Seen(TWO, State.RUNNING)]
    assert later([], seen, TIMING.orphan_grace_s - 0.1) == ()
    assert later([], seen, TIMING.orphan_grace_s) == (Destroy(TWO),)


def test_a_row_that_appears_in_time_saves_its_sandbox() -> None:
    seen = [Seen(ONE, State.RUNNING, Lifetime())]
    memory = decide([], seen, Memory(), 0.0).memory
    plan = decide([row(State.RUNNING)], seen, memory, 100.0)
    assert plan.decisions == () and plan.memory.orphan_since == {}


def test_timeouts_that_differ_are_sent_again() -> None:
    (sent,) = once([row(State.RUNNING)], [Seen(ONE, State.RUNNING, Lifetime(idle_timeout_s=1))])
    assert sent == SendLifetime(ONE, Lifetime())
    assert once([row(State.RUNNING, busy=True)], [Seen(ONE, State.RUNNING, Lifetime(idle_timeout_s=1))]) == ()
    assert once([row(State.RUNNING)], [Seen(ONE, State.RUNNING, Lifetime(ends_at_unix_s=0.001))]) == ()


def test_a_host_that_comes_back_brings_its_sandboxes_back() -> None:
    rows = [row(State.RUNNING)]
    assert decide_unreachable(rows, 89.0) == ()
    (move,) = decide_unreachable(rows, 90.0)
    assert isinstance(move, Move) and move.state is State.MISSING and move.slug == "host_unreachable"
    assert decide_unreachable([row(State.PENDING), row(State.PAUSED)], 1e9) == ()
    (back,) = once([row(State.MISSING)], [Seen(ONE, State.RUNNING, Lifetime())])
    assert isinstance(back, Move) and back.state is State.RUNNING


@given(
    states=st.lists(st.sampled_from(State), max_size=5),
    seen=st.lists(
        st.sampled_from([State.STARTING, State.RUNNING, State.STOPPING, State.ERROR, State.STOPPED]), max_size=5
    ),
    age_s=st.sampled_from([YOUNG, OLD]),
    busy=st.booleans(),
    waited_s=st.sampled_from([0.0, 1e6]),
)
def test_every_move_is_one_the_lifecycle_knows(
    states: list[State], seen: list[State], age_s: float, busy: bool, waited_s: float
) -> None:
    rows = [Row(SandboxId(UUID(int=n)), state, age_s, Lifetime(), "", busy) for n, state in enumerate(states)]
    entries = [Seen(SandboxId(UUID(int=n)), state) for n, state in enumerate(seen)]
    decisions = later(rows, entries, waited_s)
    for decision in decisions:
        if isinstance(decision, Move):
            assert decision.state in TRANSITIONS[decision.expected]
            assert decision.state not in (State.ERROR,) or decision.slug
    assert len({d.id for d in decisions}) == len(decisions), "one decision a sandbox"
