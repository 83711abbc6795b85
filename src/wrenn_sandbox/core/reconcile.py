"""What to do when the database and a host agent do not agree: decided here, done by the control plane.

The rows are read first and the agent's list second, so a row that says ``running`` was running before the list was
made. Every decision about a row holds only while the row is as it was read; whoever carries it out checks that.

::

    row          agent has it                             agent has it not
    pending      running → running; error → error         error, when nobody is making it any more
    running      error → error; stopped → stopped         error ("lost"), after a grace period
    missing      running → running; error → error         error ("lost"), after a grace period
    stopping     destroy, when nobody is at it any more   stopped
    paused ...   never touched                            never touched
    ended, none  destroy, after a grace period            nothing
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Lifetime, Shape

#: Deadlines that differ by less are the same: databases and wires round.
_SAME_MOMENT_S = 0.01


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to wait before believing what is seen."""

    absent_grace_s: float = 6.0
    orphan_grace_s: float = 10.0
    abandoned_after_s: float = 10.0
    missing_after_s: float = 90.0


@dataclass(frozen=True, slots=True)
class Row:
    """What the database says of one sandbox. ``busy``: a request of this process is working on it now."""

    id: SandboxId
    state: State
    age_s: float  # since the row was last changed
    lifetime: Lifetime
    reason: str = ""
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What the agent says of one sandbox."""

    id: SandboxId
    state: State
    lifetime: Lifetime | None = None
    reason: str = ""
    slug: str = ""
    progress: str = ""
    host_ip: str = ""
    shape: Shape | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Change the row's state, if it still is ``expected``."""

    id: SandboxId
    expected: State
    state: State
    reason: str = ""
    slug: str = ""
    seen: Seen | None = None


@dataclass(frozen=True, slots=True)
class Destroy:
    """Have the agent destroy a sandbox that should not be there."""

    id: SandboxId


@dataclass(frozen=True, slots=True)
class Note:
    """Write what a sandbox in the making waits for into its row."""

    id: SandboxId
    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class SendLifetime:
    """Tell the agent the timeouts of the row again."""

    id: SandboxId
    lifetime: Lifetime


Decision = Move | Destroy | Note | SendLifetime


@dataclass(frozen=True, slots=True)
class Memory:
    """Since when (seconds of a monotonic clock) a sandbox was absent, or was there without a right to be."""

    absent_since: Mapping[SandboxId, float] = field(default_factory=dict)
    orphan_since: Mapping[SandboxId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and what to remember for the next time."""

    decisions: tuple[Decision, ...]
    memory: Memory


#: Rows the reconciler looks at; a sandbox with any other row, or none, has no right to be on the host.
LIVE = frozenset({State.PENDING, State.STARTING, State.RUNNING, State.MISSING, State.STOPPING})
#: Rows that may or may not have a sandbox on the host: nobody may conclude anything.
UNTOUCHED = frozenset({State.PAUSED, State.PAUSING, State.RESUMING})

_LOST = "Its host no longer knows it: the machine or the host agent was restarted. Create a new one."
_ABANDONED = "The control plane was restarted while it was being made. Create a new one."


def decide(rows: Iterable[Row], seen: Iterable[Seen], memory: Memory, now_s: float, timing: Timing = Timing()) -> Plan:
    """Compare the rows of a host with what its agent has just listed. Rows that have ended may be left out."""
    by_id = {row.id: row for row in rows if row.state in LIVE | UNTOUCHED}
    on_host = {entry.id: entry for entry in seen}
    decisions: list[Decision] = []
    absent: dict[SandboxId, float] = {}
    orphans: dict[SandboxId, float] = {}
    for row in by_id.values():
        entry = on_host.get(row.id)
        if row.state in UNTOUCHED:
            continue
        if entry is not None:
            decisions += _present(row, entry, timing)
        elif row.state in (State.RUNNING, State.MISSING):
            absent[row.id] = memory.absent_since.get(row.id, now_s)
            if now_s - absent[row.id] >= timing.absent_grace_s:
                decisions.append(Move(row.id, row.state, State.ERROR, _LOST, "sandbox_lost"))
        else:
            decisions += _never_there(row, timing)
    for entry in on_host.values():
        if entry.id not in by_id:
            orphans[entry.id] = memory.orphan_since.get(entry.id, now_s)
            if now_s - orphans[entry.id] >= timing.orphan_grace_s:
                decisions.append(Destroy(entry.id))
    return Plan(tuple(decisions), Memory(absent, orphans))


def decide_unreachable(rows: Iterable[Row], silent_s: float, timing: Timing = Timing()) -> tuple[Decision, ...]:
    """What an agent that has not answered for ``silent_s`` seconds means for the rows of its host."""
    if silent_s < timing.missing_after_s:
        return ()
    reason = f"Its host has not answered for {timing.missing_after_s:.0f} s; it may come back."
    return tuple(
        Move(row.id, row.state, State.MISSING, reason, "host_unreachable") for row in rows if row.state is State.RUNNING
    )


def _present(row: Row, entry: Seen, timing: Timing) -> list[Decision]:
    abandoned = not row.busy and row.age_s >= timing.abandoned_after_s
    if row.state is State.STOPPING:
        return [Destroy(row.id)] if abandoned else []
    if row.state in (State.PENDING, State.STARTING):
        if entry.state is State.STARTING:
            return [Note(row.id, row.state, entry.progress)] if entry.progress not in ("", row.reason) else []
        if not abandoned:
            return []
    return _follow(row, entry)


def _follow(row: Row, entry: Seen) -> list[Decision]:
    if entry.state is State.ERROR:
        return [Move(row.id, row.state, State.ERROR, entry.reason, entry.slug or "sandbox_failed", entry)]
    if entry.state is State.STOPPED and row.state is State.STARTING:  # the lifecycle knows no such end
        return [Move(row.id, row.state, State.ERROR, entry.reason, entry.slug or "sandbox_failed", entry)]
    if entry.state is State.STOPPED:
        return [Move(row.id, row.state, State.STOPPED, entry.reason, entry.slug, entry)]
    if entry.state is State.RUNNING and row.state is not State.RUNNING:
        return [Move(row.id, row.state, State.RUNNING, seen=entry)]
    if entry.state is State.RUNNING and _differ(row.lifetime, entry.lifetime) and not row.busy:
        return [SendLifetime(row.id, row.lifetime)]
    return []


def _never_there(row: Row, timing: Timing) -> list[Decision]:
    if row.busy or row.age_s < timing.abandoned_after_s:
        return []
    if row.state is State.STOPPING:
        return [Move(row.id, row.state, State.STOPPED)]
    return [Move(row.id, row.state, State.ERROR, _ABANDONED, "create_interrupted")]


def _differ(wanted: Lifetime, actual: Lifetime | None) -> bool:
    if actual is None:
        return False
    return (wanted.idle_timeout_s, wanted.idle_action, wanted.deadline_action) != (
        actual.idle_timeout_s,
        actual.idle_action,
        actual.deadline_action,
    ) or abs(wanted.ends_at_unix_s - actual.ends_at_unix_s) > _SAME_MOMENT_S
