"""What to do when the database and a host agent do not agree: decided here, done by the control plane.

The rows are read first and the agent's list second, so a row that says ``running`` was running before the list was
made. Every decision about a row holds only while the row is as it was read; whoever carries it out checks that.

::

    row          agent has it                                       agent has it not
    pending      running, paused → so; error → error                error, when nobody is making it any more
    running      error → error; stopped → stopped; paused → paused  error ("lost"), after a grace period
    missing      running → running; as running                      error ("lost"), after a grace period
    pausing      when nobody is at it any more: as running          error ("lost"), after a grace period
    resuming     when nobody is at it any more: running, paused →   paused again: its build is held
                 so; error → error
    stopping     destroy, when nobody is at it any more             stopped
    paused       never touched                                      never touched
    error that   never touched: what it can be resumed from would   never touched
    has a build  go with it
    ended        destroy, after a grace period                      nothing
    no row       paused, or with a build: left alone, and said;     –
                 else destroy, after a grace period

Rows are never deleted. So the work of a sandbox that has none is another database's, or the database was lost: it must
be there when the right one comes back.

A pause makes a new build. So when the agent says ``paused`` with a build that the row knew already, it did not pause:
its machine is gone, and that older moment is all there is. Nothing goes back in time by itself: it becomes an error
that offers the build for a resume.

The children of one fork name it while they are pending, and come to be together: when one of them is not there, or
failed, all become errors, and those that were born are destroyed.

A row that names the build to which its sandbox shall be rolled back is settled by what the agent says that it descends
from. A roll back restores beside the machine that ran, so the sandbox answers behind another address afterwards, which
tells of one that came too late for that.

Builds are compared likewise: an intent becomes a record when the host has the build and is forgotten when it has not;
a record of a build that the host has no more goes, unless something needs it; a template that only the host knows is
deleted there, unless it is a moment of a sandbox that has no row: then it is another database's, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wrenn_sandbox.core.ids import BuildId, SandboxId, TemplateId
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
    """What the database says of one sandbox. ``busy``: a request of this process is working on it now.

    ``build`` is its newest durable build, ``current`` the one that its present state descends from, ``intended`` that
    to which a running one shall be rolled back, or of the fork that a pending one shall be born of.
    """

    id: SandboxId
    state: State
    age_s: float  # since the row was last changed
    lifetime: Lifetime
    reason: str = ""
    busy: bool = False
    build: BuildId | None = None
    current: BuildId | None = None
    intended: BuildId | None = None
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the agent says of one sandbox. ``build``: the newest durable one that is its own.

    ``current`` is what a running one descends from; None above a base template, and while that is not known.
    ``stalled`` is the slug of what its guest waits for.
    """

    id: SandboxId
    state: State
    lifetime: Lifetime | None = None
    reason: str = ""
    slug: str = ""
    progress: str = ""
    host_ip: str = ""
    shape: Shape | None = None
    build: BuildId | None = None
    current: BuildId | None = None
    stalled: str = ""


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
class Spare:
    """Leave alone what no row knows, although it could be resumed, and say so."""

    id: SandboxId


@dataclass(frozen=True, slots=True)
class Note:
    """Write what a sandbox in the making waits for into its row."""

    id: SandboxId
    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class NoteMoment:
    """Write into a running sandbox's row what it can be resumed from, what it descends from, and where it answers.

    None and an empty address leave what the row says. ``settles``: a roll back was done, or was not.
    """

    id: SandboxId
    build: BuildId | None = None
    current: BuildId | None = None
    host_ip: str = ""
    settles: bool = False


@dataclass(frozen=True, slots=True)
class SendLifetime:
    """Tell the agent the timeouts of the row again."""

    id: SandboxId
    lifetime: Lifetime


Decision = Move | Destroy | Spare | Note | NoteMoment | SendLifetime


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


#: Rows that follow what the host says.
LIVE = frozenset(
    {State.PENDING, State.STARTING, State.RUNNING, State.MISSING, State.PAUSING, State.RESUMING, State.STOPPING}
)
#: Rows that have their right to what the host keeps of them, and follow nothing.
UNTOUCHED = frozenset({State.PAUSED})
#: In these somebody is changing the sandbox; once nobody is, the host says what came of it.
_IN_CHANGE = frozenset({State.PENDING, State.STARTING, State.PAUSING, State.RESUMING})

LOST_SLUG = "sandbox_lost"
_LOST = "Its host no longer knows it: the machine or the host agent was restarted."
_ABANDONED = "The control plane was restarted while it was being made. Create a new one."
_NEW_ONE = "Create a new one."
_UNBORN = "The control plane was restarted during the fork, and not all of its children came to run. Fork again."
_OFFER = "Its last durable build is kept: resume it to go on from there, or destroy it."
_TRY = "Should its last durable build still be there, a resume goes on from it."


def may_stay(state: State | None, build: BuildId | None) -> bool:
    """Whether a sandbox with such a row has a right to be on its host. None: there is no row."""
    return state in LIVE | UNTOUCHED or (state is State.ERROR and build is not None)


def decide(rows: Iterable[Row], seen: Iterable[Seen], memory: Memory, now_s: float, timing: Timing = Timing()) -> Plan:
    """Compare the rows of a host with what its agent has just listed.

    Of what has ended, only the rows of sandboxes that the agent lists matter.
    """
    known = {row.id: row for row in rows}
    by_id = {row.id: row for row in known.values() if may_stay(row.state, row.build)}
    on_host = {entry.id: entry for entry in seen}
    decisions: list[Decision] = []
    absent: dict[SandboxId, float] = {}
    orphans: dict[SandboxId, float] = {}
    forks: dict[BuildId, list[Row]] = {}
    for row in by_id.values():
        entry = on_host.get(row.id)
        if row.state not in LIVE:
            continue
        if row.state is State.PENDING and row.intended is not None:
            forks.setdefault(row.intended, []).append(row)
            continue
        if entry is not None:
            decisions += _present(row, entry, timing)
            continue
        absent[row.id] = memory.absent_since.get(row.id, now_s)
        decisions += _absent(row, now_s - absent[row.id], timing)
    for children in forks.values():
        decisions += _born(children, on_host, timing)
    for entry in on_host.values():
        if entry.id not in by_id:
            orphans[entry.id] = memory.orphan_since.get(entry.id, now_s)
            if now_s - orphans[entry.id] >= timing.orphan_grace_s:
                lost = entry.id not in known and _has_work(entry)
                decisions.append(Spare(entry.id) if lost else Destroy(entry.id))
    return Plan(tuple(decisions), Memory(absent, orphans))


def decide_unreachable(rows: Iterable[Row], silent_s: float, timing: Timing = Timing()) -> tuple[Decision, ...]:
    """What an agent that has not answered for ``silent_s`` seconds means for the rows of its host."""
    if silent_s < timing.missing_after_s:
        return ()
    reason = f"Its host has not answered for {timing.missing_after_s:.0f} s; it may come back."
    return tuple(
        Move(row.id, row.state, State.MISSING, reason, "host_unreachable") for row in rows if row.state is State.RUNNING
    )


def _has_work(entry: Seen) -> bool:
    return entry.build is not None or entry.state in (State.PAUSING, State.PAUSED)


def _born(children: list[Row], on_host: Mapping[SandboxId, Seen], timing: Timing) -> list[Decision]:
    """Of the children of one fork all come to be, or none. One that has ended by its own timeout was born, too."""
    there = [(row, on_host[row.id]) for row in children if row.id in on_host]
    if any(entry.state is State.STARTING for _, entry in there) or not all(_abandoned(row, timing) for row in children):
        return [note for row, entry in there if entry.state is State.STARTING for note in _present(row, entry, timing)]
    if len(there) == len(children) and all(entry.state is not State.ERROR for _, entry in there):
        return [decision for row, entry in there for decision in _follow(row, entry, abandoned=True)]
    # Those that were born first: whoever has to go on from the middle of this still finds that one was not.
    ordered = sorted(children, key=lambda row: row.id not in on_host or on_host[row.id].state is State.ERROR)
    moves = [Move(row.id, row.state, State.ERROR, _UNBORN, "fork_interrupted") for row in ordered]
    return [*moves, *(Destroy(row.id) for row, _ in there)]


def _abandoned(row: Row, timing: Timing) -> bool:
    return not row.busy and row.age_s >= timing.abandoned_after_s


def _present(row: Row, entry: Seen, timing: Timing) -> list[Decision]:
    abandoned = _abandoned(row, timing)
    if row.state is State.STOPPING:
        return [Destroy(row.id)] if abandoned else []
    if row.state in (State.PENDING, State.STARTING) and entry.state is State.STARTING:
        return [Note(row.id, row.state, entry.progress)] if entry.progress not in ("", row.reason) else []
    if row.state in _IN_CHANGE and not abandoned:
        return []
    return _follow(row, entry, abandoned=abandoned)


def _follow(row: Row, entry: Seen, *, abandoned: bool) -> list[Decision]:
    match entry.state:
        case State.ERROR:
            return [_failed(row, entry, entry.reason, slug=entry.slug or "sandbox_failed")]
        case State.STOPPED if row.state is State.STARTING:  # the lifecycle knows no such end
            return [_failed(row, entry, entry.reason, slug=entry.slug or "sandbox_failed")]
        case State.STOPPED:
            return [Move(row.id, row.state, State.STOPPED, entry.reason, entry.slug, entry)]
        case State.PAUSED if row.state is State.STARTING:  # nor this: it is made of two moves
            return [Move(row.id, row.state, State.RUNNING, seen=entry)]
        case State.PAUSED if row.state is State.RESUMING or entry.build not in (None, row.build, row.current):
            return [Move(row.id, row.state, State.PAUSED, entry.reason, entry.slug, entry)]
        case State.PAUSED:
            return [_failed(row, entry, _LOST, slug=LOST_SLUG)]
        case State.RUNNING if row.state is not State.RUNNING:
            return [Move(row.id, row.state, State.RUNNING, seen=entry)]
        case State.RUNNING if row.busy:
            return []
        case State.RUNNING if _differ(row.lifetime, entry.lifetime):
            return [SendLifetime(row.id, row.lifetime)]
        case State.RUNNING if row.intended is None or abandoned:
            return _moment(row, entry)
    return []


def _moment(row: Row, entry: Seen) -> list[Decision]:
    build = entry.build if entry.build != row.build else None
    host_ip = entry.host_ip if entry.host_ip != row.host_ip else ""
    current = None
    if row.intended is not None and entry.current == row.intended:
        current = row.intended
    elif build is not None or host_ip:
        current = entry.current or build
    note = NoteMoment(row.id, build, current, host_ip, settles=row.intended is not None)
    return [note] if note != NoteMoment(row.id) else []


def _failed(row: Row, entry: Seen, reason: str, *, slug: str) -> Move:
    if entry.build is not None:
        reason = f"{reason} {_OFFER}".strip()
    return Move(row.id, row.state, State.ERROR, reason, slug, entry)


def _absent(row: Row, absent_s: float, timing: Timing) -> list[Decision]:
    if row.state in (State.RUNNING, State.MISSING):
        return _lost(row) if absent_s >= timing.absent_grace_s else []
    if row.busy or row.age_s < timing.abandoned_after_s:
        return []
    match row.state:
        case State.STOPPING:
            return [Move(row.id, row.state, State.STOPPED)]
        case State.RESUMING:
            return [Move(row.id, row.state, State.PAUSED)]
        case State.PAUSING:
            return _lost(row) if absent_s >= timing.absent_grace_s else []
    return [Move(row.id, row.state, State.ERROR, _ABANDONED, "create_interrupted")]


def _lost(row: Row) -> list[Decision]:
    advice = _TRY if row.build is not None else _NEW_ONE
    return [Move(row.id, row.state, State.ERROR, f"{_LOST} {advice}", LOST_SLUG)]


def _differ(wanted: Lifetime, actual: Lifetime | None) -> bool:
    if actual is None:
        return False
    return (wanted.idle_timeout_s, wanted.idle_action, wanted.deadline_action) != (
        actual.idle_timeout_s,
        actual.idle_action,
        actual.deadline_action,
    ) or abs(wanted.ends_at_unix_s - actual.ends_at_unix_s) > _SAME_MOMENT_S


@dataclass(frozen=True, slots=True)
class BuildRow:
    """What the database says of one build. ``making``: it is an intent; ``template`` what shall come of it.

    ``needed``: a template or a sandbox that has not ended names it. ``busy``: somebody is still at it.
    """

    id: BuildId
    making: bool
    age_s: float
    template: TemplateId | None = None
    needed: bool = False
    busy: bool = False
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SeenBuild:
    """What the agent says of one durable build. ``templates`` are those that keep it.

    ``foreign``: no row knows the sandbox whose moment it is.
    """

    id: BuildId
    templates: frozenset[TemplateId] = frozenset()
    size_bytes: int = 0
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """The build is durable: write that down, or its new size. Of a snapshot's intent the template comes to be.

    ``unnamed``: the host kept the moment and stopped before the template had it; the name is free again.
    """

    id: BuildId
    seen: BuildId  # of a paused sandbox, a snapshot keeps the build there is
    unnamed: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the row: there is no such build."""

    id: BuildId


@dataclass(frozen=True, slots=True)
class DeleteTemplate:
    """Have the agent let go of a template that is nobody's."""

    id: TemplateId


@dataclass(frozen=True, slots=True)
class SpareTemplate:
    """Leave a template alone that no row knows and that is not ours, and say so."""

    id: TemplateId


BuildDecision = Record | Forget | DeleteTemplate | SpareTemplate


@dataclass(frozen=True, slots=True)
class BuildMemory:
    """Since when a build was absent, or a template there without a right to be."""

    absent_since: Mapping[BuildId, float] = field(default_factory=dict)
    orphan_since: Mapping[TemplateId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What to do now, and what to remember for the next time."""

    decisions: tuple[BuildDecision, ...]
    memory: BuildMemory


def decide_builds(
    rows: Iterable[BuildRow],
    known: frozenset[TemplateId],
    seen: Iterable[SeenBuild],
    memory: BuildMemory,
    *,
    now_s: float,
    timing: Timing = Timing(),
) -> BuildPlan:
    """Compare the rows of builds, and the templates with a row of their own, with what the agent has just listed."""
    rows, on_host = list(rows), {build.id: build for build in seen}
    holding = {template: build.id for build in on_host.values() for template in build.templates}
    decisions: list[BuildDecision] = []
    absent: dict[BuildId, float] = {}
    for row in rows:
        if row.busy or (row.making and row.age_s < timing.abandoned_after_s):
            continue
        own = row.id if row.id in on_host else None
        found = holding.get(row.template) if row.template is not None else own
        if found is None and own is not None:
            decisions.append(Record(row.id, own, unnamed=True))
            continue
        if found is not None and (row.making or on_host[found].size_bytes != row.size_bytes):
            decisions.append(Record(row.id, found))
        elif found is None and not row.needed:
            absent[row.id] = memory.absent_since.get(row.id, now_s)
            if row.making or now_s - absent[row.id] >= timing.absent_grace_s:
                decisions.append(Forget(row.id))
    rightful = known | {row.template for row in rows if row.template is not None}
    orphans = {template: memory.orphan_since.get(template, now_s) for template in holding if template not in rightful}
    for template, since in orphans.items():
        if now_s - since >= timing.orphan_grace_s:
            foreign = on_host[holding[template]].foreign
            decisions.append(SpareTemplate(template) if foreign else DeleteTemplate(template))
    return BuildPlan(tuple(decisions), BuildMemory(absent, orphans))
