"""The states of a sandbox and what is allowed in each: one table, asked by everyone.

::

            create                 pause              (durable)
    ────▶ STARTING ──▶ RUNNING ◀──────────▶ PAUSING ──▶ PAUSED
              │           │  ▲                             │
              │           │  └────────── RESUMING ◀────────┘
              ▼           ▼
            ERROR ──▶ STOPPING ──▶ STOPPED

An ERROR of a sandbox with a durable build can be left by an explicit resume from that build, too. FORK, SNAPSHOT and
ROLLBACK leave a running sandbox RUNNING: they are short, and whoever uses it meanwhile merely waits. What they intend
stands beside the state: in the rows of builds, and in ``intended_build_id`` of those of sandboxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from wrenn_sandbox.core.errors import Conflict


class State(Enum):
    """Where a sandbox is in its life. The values are what the database and the API show."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"
    MISSING = "missing"


class Action(Enum):
    """What can be asked of a sandbox."""

    USE = "use"  # exec, files, terminal, proxy traffic
    PAUSE = "pause"
    RESUME = "resume"
    SNAPSHOT = "snapshot"
    FORK = "fork"
    ROLLBACK = "rollback"
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an action is allowed now, and the sentence that says why not."""

    allowed: bool
    why_not: str = ""


_ALLOWED: dict[Action, frozenset[State]] = {
    Action.USE: frozenset({State.RUNNING}),
    Action.PAUSE: frozenset({State.RUNNING}),
    Action.RESUME: frozenset({State.PAUSED}),
    Action.SNAPSHOT: frozenset({State.RUNNING, State.PAUSED}),
    Action.FORK: frozenset({State.RUNNING, State.PAUSED}),
    Action.ROLLBACK: frozenset({State.RUNNING, State.PAUSED, State.ERROR}),
    Action.DESTROY: frozenset(State) - {State.STOPPED},
}

_HINTS: dict[State, str] = {
    State.PENDING: "wait until it is running",
    State.STARTING: "wait until it is running",
    State.PAUSING: "wait until it is paused, then resume it",
    State.PAUSED: "resume it first",
    State.RESUMING: "wait until it is running",
    State.STOPPING: "create a new one",
    State.STOPPED: "create a new one",
    State.ERROR: "look at its reason, then destroy it and create a new one",
    State.MISSING: "its host does not answer; wait for it or create a new one",
    State.RUNNING: "it is running already",
}


def verdict(state: State, action: Action) -> Verdict:
    """Say whether ``action`` is allowed in ``state``."""
    if state in _ALLOWED[action]:
        return Verdict(True)
    return Verdict(False, f"The sandbox is {state.value}: {_HINTS[state]}.")


def require(state: State, action: Action) -> None:
    """Raise Conflict (``invalid_state``) when ``action`` is not allowed in ``state``."""
    answer = verdict(state, action)
    if not answer.allowed:
        raise Conflict(answer.why_not, slug="invalid_state")


#: Moves a sandbox can make. The host agent and the database both refuse any other.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.ERROR, State.STOPPING, State.STOPPED}),
    State.STARTING: frozenset({State.RUNNING, State.ERROR, State.STOPPING}),
    State.RUNNING: frozenset({State.PAUSING, State.PAUSED, State.STOPPING, State.ERROR, State.MISSING, State.STOPPED}),
    State.PAUSING: frozenset({State.PAUSED, State.RUNNING, State.ERROR, State.STOPPING, State.MISSING, State.STOPPED}),
    State.PAUSED: frozenset({State.RESUMING, State.RUNNING, State.STOPPING, State.STOPPED}),
    State.RESUMING: frozenset({State.RUNNING, State.PAUSED, State.ERROR, State.STOPPING, State.STOPPED}),
    State.STOPPING: frozenset({State.STOPPED, State.ERROR}),
    State.ERROR: frozenset({State.RESUMING, State.STOPPING, State.STOPPED}),
    State.MISSING: frozenset({State.RUNNING, State.PAUSED, State.STOPPED, State.STOPPING, State.ERROR}),
    State.STOPPED: frozenset(),
}
