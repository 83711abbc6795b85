from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrenn_sandbox.core.ids import BuildId, SandboxId, TemplateId
from wrenn_sandbox.core.lifecycle import TRANSITIONS, State
from wrenn_sandbox.core.reconcile import (
    BuildDecision,
    BuildMemory,
    BuildRow,
    Decision,
    DeleteTemplate,
    Destroy,
    Forget,
    Memory,
    Move,
    Note,
    NoteMoment,
    Record,
    Row,
    Seen,
    SeenBuild,
    SendLifetime,
    Spare,
    SpareTemplate,
    Timing,
    decide,
    decide_builds,
    decide_unreachable,
    may_stay,
)
from wrenn_sandbox.core.spec import Lifetime

ONE, TWO = SandboxId(UUID(int=1)), SandboxId(UUID(int=2))
A, B = BuildId(UUID(int=10)), BuildId(UUID(int=11))
X, Y = TemplateId(UUID(int=20)), TemplateId(UUID(int=21))
OLD, YOUNG = 3600.0, 1.0
TIMING = Timing()


def row(
    state: State,
    *,
    age_s: float = OLD,
    busy: bool = False,
    reason: str = "",
    build: BuildId | None = None,
    current: BuildId | None = None,
    intended: BuildId | None = None,
    host_ip: str = "",
    sandbox: SandboxId = ONE,
) -> Row:
    return Row(
        sandbox,
        state,
        age_s,
        Lifetime(),
        reason=reason,
        busy=busy,
        build=build,
        current=current,
        intended=intended,
        host_ip=host_ip,
    )


def move_of(decisions: tuple[Decision, ...]) -> Move:
    (move,) = decisions
    assert isinstance(move, Move)
    return move


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


@pytest.mark.parametrize(
    "seen",
    [
        [],
        [Seen(ONE, State.PAUSED, build=A)],
        [Seen(ONE, State.PAUSED, build=B)],
        [Seen(ONE, State.RUNNING)],
        [Seen(ONE, State.ERROR)],
    ],
)
def test_paused_rows_are_never_touched(seen: list[Seen]) -> None:
    assert later([row(State.PAUSED, build=A, current=A)], seen, 1e9) == ()


@pytest.mark.parametrize("seen", [[], [Seen(ONE, State.PAUSED, build=A)], [Seen(ONE, State.ERROR, build=A)]])
def test_a_failed_one_keeps_what_it_can_be_resumed_from(seen: list[Seen]) -> None:
    assert later([row(State.ERROR, build=A)], seen, 1e9) == ()
    assert may_stay(State.ERROR, A) and not may_stay(State.ERROR, None)
    assert later([row(State.ERROR)], seen, 1e9) == tuple(Destroy(entry.id) for entry in seen)


@pytest.mark.parametrize("state", [State.RUNNING, State.MISSING, State.PENDING, State.PAUSING])
def test_a_pause_of_the_hosts_own_is_learned_every_time_it_is_seen(state: State) -> None:
    entry = Seen(ONE, State.PAUSED, reason="not used", slug="idle_timeout", build=B)
    memory = Memory()
    for _ in range(3):  # a control plane that dies in between loses nothing
        plan = decide([row(state, build=A, current=A)], [entry], memory, 0.0)
        move = move_of(plan.decisions)
        assert (move.expected, move.state, move.slug, move.seen) == (state, State.PAUSED, "idle_timeout", entry)
        memory = plan.memory


@pytest.mark.parametrize("state", [State.RUNNING, State.MISSING, State.PAUSING])
@pytest.mark.parametrize("known", [{"build": A}, {"current": A}, {"build": A, "current": B}])
def test_nothing_goes_back_in_time_by_itself(state: State, known: dict[str, BuildId]) -> None:
    move = move_of(once([row(state, **known)], [Seen(ONE, State.PAUSED, build=A)]))  # type: ignore[arg-type]
    assert (move.state, move.slug) == (State.ERROR, "sandbox_lost") and "resume it" in move.reason


def test_an_error_offers_the_build_there_is() -> None:
    died = Seen(ONE, State.ERROR, reason="Signal 9.", slug="vmm_died", build=A)
    move = move_of(once([row(State.RUNNING, build=A, current=A)], [died]))
    assert move.slug == "vmm_died" and move.reason.startswith("Signal 9. ") and "resume it" in move.reason


def test_a_change_somebody_works_on_is_left_alone() -> None:
    for state in (State.PAUSING, State.RESUMING):
        for seen in ([], *([Seen(ONE, other, build=A)] for other in State)):
            assert later([row(state, busy=True)], seen, 1e6) == ()
            assert once([row(state, age_s=YOUNG)], seen) == ()


@pytest.mark.parametrize(
    ("state", "seen", "wanted"),
    [
        (State.PAUSING, State.RUNNING, State.RUNNING),
        (State.PAUSING, State.PAUSED, State.PAUSED),
        (State.PAUSING, State.ERROR, State.ERROR),
        (State.PAUSING, State.STOPPED, State.STOPPED),
        (State.PAUSING, State.PAUSING, None),
        (State.RESUMING, State.RUNNING, State.RUNNING),
        (State.RESUMING, State.PAUSED, State.PAUSED),
        (State.RESUMING, State.ERROR, State.ERROR),
        (State.RESUMING, State.STOPPED, State.STOPPED),
        (State.RESUMING, State.STARTING, None),
        (State.RESUMING, State.RESUMING, None),
    ],
)
def test_an_abandoned_change_follows_the_agent(state: State, seen: State, wanted: State | None) -> None:
    build = A if state is State.RESUMING else B
    decisions = once([row(state, build=A, current=A)], [Seen(ONE, seen, build=build)])
    assert decisions == () if wanted is None else move_of(decisions).state is wanted


def test_an_abandoned_change_of_one_that_is_not_there() -> None:
    assert move_of(once([row(State.RESUMING, build=A)], [])).state is State.PAUSED, "its build is held"
    assert once([row(State.PAUSING)], []) == ()
    move = move_of(later([row(State.PAUSING)], [], TIMING.absent_grace_s))
    assert (move.state, move.slug) == (State.ERROR, "sandbox_lost") and "new one" in move.reason
    assert "resume" in move_of(later([row(State.PAUSING, build=A)], [], TIMING.absent_grace_s)).reason


@pytest.mark.parametrize("seen", [Seen(ONE, State.PAUSED, build=A), Seen(ONE, State.ERROR, build=A)])
def test_what_is_kept_without_a_right_to_be_is_destroyed_after_a_grace_period(seen: Seen) -> None:
    ended = [row(State.STOPPED, build=A)]
    assert later(ended, [seen], TIMING.orphan_grace_s - 0.1) == ()
    assert later(ended, [seen], TIMING.orphan_grace_s) == (Destroy(ONE),)
    assert once([row(State.STOPPING)], [seen]) == (Destroy(ONE),)


@pytest.mark.parametrize(
    "seen",
    [
        Seen(TWO, State.PAUSED, build=A),
        Seen(TWO, State.PAUSED),
        Seen(TWO, State.PAUSING),
        Seen(TWO, State.ERROR, build=A),
        Seen(TWO, State.RUNNING, build=A),
    ],
)
def test_work_that_no_row_knows_is_another_databases(seen: Seen) -> None:
    assert later([], [seen], TIMING.orphan_grace_s - 0.1) == ()
    assert later([row(State.PAUSED, build=A)], [seen], 1e9) == (Spare(TWO),)


def test_a_new_build_of_a_running_one_is_noted() -> None:
    seen = [Seen(ONE, State.RUNNING, Lifetime(), build=B)]
    assert once([row(State.RUNNING, build=A)], seen) == (NoteMoment(ONE, B, B),)
    assert once([row(State.RUNNING, build=B)], seen) == once([row(State.RUNNING, build=A, busy=True)], seen) == ()
    assert once([row(State.RUNNING, build=A)], [Seen(ONE, State.RUNNING, Lifetime())]) == ()


def running(
    build: BuildId | None = None, current: BuildId | None = None, host_ip: str = "", lifetime: Lifetime | None = None
) -> Seen:
    return Seen(ONE, State.RUNNING, lifetime or Lifetime(), host_ip=host_ip, build=build, current=current)


def test_an_abandoned_roll_back_is_settled_by_what_the_host_has() -> None:
    back = row(State.RUNNING, build=B, current=B, intended=A, host_ip="10.11.0.1")
    assert once([back], [running(A, A, "10.11.0.2")]) == (NoteMoment(ONE, A, A, "10.11.0.2", settles=True),)
    assert once([back], [running(B, B, "10.11.0.1")]) == (NoteMoment(ONE, settles=True),)
    # It was resumed from an older build than its newest: what it has, does not tell.
    older = row(State.RUNNING, build=A, current=B, intended=A, host_ip="10.11.0.1")
    assert once([older], [running(A, A, "10.11.0.2")]) == (NoteMoment(ONE, None, A, "10.11.0.2", settles=True),)
    assert once([older], [running(A, B, "10.11.0.1")]) == (NoteMoment(ONE, settles=True),)
    # An agent killed in the middle holds the build already, and runs what ran before.
    assert once([back], [running(A, B, "10.11.0.1")]) == (NoteMoment(ONE, A, B, settles=True),)


def test_a_roll_back_somebody_works_on_is_left_alone() -> None:
    for state in ({"age_s": YOUNG}, {"busy": True}):
        back = row(State.RUNNING, build=B, intended=A, **state)  # type: ignore[arg-type]
        assert once([back], [running(A, A, "10.11.0.2")]) == once([back], [running(B, B)]) == ()


def test_a_roll_back_that_came_too_late_to_be_settled_is_seen_by_its_address() -> None:
    settled = row(State.RUNNING, build=A, current=B, host_ip="10.11.0.1")
    assert once([settled], [running(A, A, "10.11.0.2")]) == (NoteMoment(ONE, None, A, "10.11.0.2"),)
    assert once([settled], [running(A, B, "10.11.0.1")]) == once([settled], [running(A, None, "")]) == ()


def fork_of(*ages: float, busy: bool = False) -> list[Row]:
    return [
        row(State.PENDING, age_s=age_s, busy=busy, intended=A, sandbox=SandboxId(UUID(int=n + 1)))
        for n, age_s in enumerate(ages)
    ]


def test_children_of_an_abandoned_fork_come_to_be_together() -> None:
    children = fork_of(OLD, OLD, OLD)
    seen = [
        Seen(ONE, State.RUNNING),
        Seen(TWO, State.STOPPED, slug="deadline"),
        Seen(children[2].id, State.PAUSED, build=B),
    ]
    moves = once(children, seen)
    assert [(m.id, m.state) for m in moves if isinstance(m, Move)] == [
        (ONE, State.RUNNING),
        (TWO, State.STOPPED),
        (children[2].id, State.PAUSED),
    ]
    other = row(State.PENDING, intended=B, sandbox=SandboxId(UUID(int=9)))
    failed = once([*children, other], seen)[-1:]
    assert (move_of(failed).id, move_of(failed).slug) == (other.id, "fork_interrupted"), (
        "another fork is another matter"
    )


@pytest.mark.parametrize("seen", [[], [Seen(TWO, State.RUNNING)], [Seen(TWO, State.RUNNING), Seen(ONE, State.ERROR)]])
def test_of_an_abandoned_fork_without_one_child_none_stays(seen: list[Seen]) -> None:
    children = fork_of(OLD, OLD, OLD)[: 2 if len(seen) == 2 else 3]
    decisions = once(children, seen)
    moves = [d for d in decisions if isinstance(d, Move)]
    assert {m.id for m in moves} == {child.id for child in children}
    assert {(m.state, m.slug, m.seen) for m in moves} == {(State.ERROR, "fork_interrupted", None)}
    assert {d.id for d in decisions if isinstance(d, Destroy)} == {entry.id for entry in seen}
    if seen:
        assert moves[0].id == TWO, "whoever dies after some of them leaves one that was not born to the next"


def test_children_somebody_makes_are_left_alone() -> None:
    one = [Seen(ONE, State.RUNNING)]
    assert later(fork_of(OLD, OLD, busy=True), one, 1e6) == later(fork_of(OLD, YOUNG), one, 1e6) == ()
    making = [*one, Seen(TWO, State.STARTING, progress="restoring")]
    assert once(fork_of(OLD, OLD), making) == (Note(TWO, State.PENDING, "restoring"),)


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
    seen=st.lists(st.tuples(st.sampled_from(State), st.sampled_from([None, A, B])), max_size=5),
    known=st.sampled_from([None, A]),
    intended=st.sampled_from([None, B]),
    age_s=st.sampled_from([YOUNG, OLD]),
    busy=st.booleans(),
    waited_s=st.sampled_from([0.0, 1e6]),
)
def test_every_move_is_one_the_lifecycle_knows(
    states: list[State],
    seen: list[tuple[State, BuildId | None]],
    known: BuildId | None,
    intended: BuildId | None,
    age_s: float,
    busy: bool,
    waited_s: float,
) -> None:
    rows = [
        Row(SandboxId(UUID(int=n)), state, age_s, Lifetime(), "", busy, known, known, intended)
        for n, state in enumerate(states)
    ]
    entries = [Seen(SandboxId(UUID(int=n)), state, build=build) for n, (state, build) in enumerate(seen)]
    decisions = later(rows, entries, waited_s)
    for decision in decisions:
        if isinstance(decision, Move):
            assert decision.state in TRANSITIONS[decision.expected]
            assert decision.state not in (State.ERROR,) or decision.slug
            assert decision.expected is not State.PAUSED
    kinds = [(d.id, isinstance(d, Destroy) and intended is not None) for d in decisions]
    assert len(set(kinds)) == len(decisions), "one decision a sandbox, but for the children of a fork that failed"


def builds_once(rows: list[BuildRow], seen: list[SeenBuild], *known: TemplateId) -> tuple[BuildDecision, ...]:
    return decide_builds(rows, frozenset(known), seen, BuildMemory(), now_s=1000.0).decisions


def builds_later(
    rows: list[BuildRow], seen: list[SeenBuild], after_s: float, *known: TemplateId
) -> tuple[BuildDecision, ...]:
    memory = decide_builds(rows, frozenset(known), seen, BuildMemory(), now_s=1000.0).memory
    return decide_builds(rows, frozenset(known), seen, memory, now_s=1000.0 + after_s).decisions


def test_builds_that_agree_are_left_alone() -> None:
    assert builds_later([BuildRow(A, False, OLD, size_bytes=5)], [SeenBuild(A, frozenset({X}), 5)], 1e9, X) == ()


@pytest.mark.parametrize("state", [{"age_s": YOUNG}, {"age_s": OLD, "busy": True}])
def test_an_intent_somebody_works_on_is_left_alone(state: dict[str, float]) -> None:
    for seen in ([], [SeenBuild(A, frozenset({X}))]):
        assert builds_later([BuildRow(A, True, template=X, **state)], seen, 1e9) == ()  # type: ignore[arg-type]


def test_an_abandoned_intent_is_settled_both_ways() -> None:
    assert builds_once([BuildRow(A, True, OLD)], [SeenBuild(A)]) == (Record(A, A),)
    assert builds_once([BuildRow(A, True, OLD)], []) == (Forget(A),)
    snapshot = BuildRow(A, True, OLD, template=X)
    assert builds_once([snapshot], [SeenBuild(A, frozenset({X}))]) == (Record(A, A),)
    assert builds_once([snapshot], [SeenBuild(B, frozenset({X}))]) == (Record(A, B),), "of a paused one: what it has"
    assert builds_once([snapshot], []) == (Forget(A),)


@pytest.mark.parametrize("needed", [True, False])
def test_a_moment_that_was_kept_without_its_template_is_a_build_like_any_other(needed: bool) -> None:
    snapshot = BuildRow(A, True, OLD, template=X, needed=needed)
    assert builds_once([snapshot], [SeenBuild(A)]) == (Record(A, A, unnamed=True),)
    assert builds_once([BuildRow(A, True, YOUNG, template=X, needed=needed)], [SeenBuild(A)]) == ()


def test_a_build_that_is_gone_is_forgotten_after_a_grace_period_unless_it_is_needed() -> None:
    rows = [BuildRow(A, False, OLD), BuildRow(B, False, OLD, needed=True)]
    assert builds_later(rows, [], TIMING.absent_grace_s - 0.1) == ()
    assert builds_later(rows, [], TIMING.absent_grace_s) == (Forget(A),)


def test_a_new_size_is_written_down() -> None:
    assert builds_once([BuildRow(A, False, OLD, size_bytes=5)], [SeenBuild(A, size_bytes=6)]) == (Record(A, A),)


def test_templates_that_are_nobodys_are_deleted_after_a_grace_period() -> None:
    seen = [SeenBuild(A, frozenset({X, Y}))]
    assert builds_later([], seen, TIMING.orphan_grace_s - 0.1, X) == ()
    assert builds_later([], seen, TIMING.orphan_grace_s, X) == (DeleteTemplate(Y),)
    making = [BuildRow(A, True, YOUNG, template=Y)]
    assert builds_later(making, seen, 1e9, X) == (), "one in the making has its right"


def test_templates_of_another_database_are_left_alone() -> None:
    seen = [SeenBuild(A, frozenset({X}), foreign=True), SeenBuild(B, frozenset({Y}))]
    assert set(builds_later([], seen, 1e9)) == {SpareTemplate(X), DeleteTemplate(Y)}
    assert builds_later([], seen, TIMING.orphan_grace_s - 0.1) == builds_later([], seen, 1e9, X, Y) == ()


def test_what_was_absent_once_begins_anew() -> None:
    rows = [BuildRow(A, False, OLD)]
    memory = decide_builds(rows, frozenset(), [], BuildMemory(), now_s=0.0).memory
    memory = decide_builds(rows, frozenset(), [SeenBuild(A)], memory, now_s=5.0).memory
    assert decide_builds(rows, frozenset(), [], memory, now_s=100.0).decisions == ()
