"""When a sandbox ends by itself: idle timeout and deadline, decided from clocks that are passed in.

The idle timeout counts from the end of the last use; while a use lasts (a running command, an open terminal or stream,
a proxied request) it does not count at all. ``now_s`` is monotonic, ``unix_s`` wall-clock time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from wrenn_sandbox.core.spec import Lifetime, TimeoutAction

#: The wall clock may be set while we sleep: the deadline is looked at this often at least.
_LONGEST_SLEEP_S = 30.0


class Ending(Enum):
    """Why a sandbox ends by itself; the values are the slugs users see."""

    IDLE = "idle_timeout"
    DEADLINE = "deadline"


@dataclass(slots=True)
class Timers:
    """The two limits of one sandbox and when it was last used."""

    lifetime: Lifetime
    last_use_s: float
    uses: int = 0

    def begin_use(self, now_s: float) -> None:
        """Something uses the sandbox from now on."""
        self.uses += 1
        self.last_use_s = now_s

    def end_use(self, now_s: float) -> None:
        """One of the uses has ended."""
        self.uses -= 1
        self.last_use_s = now_s

    def touch(self, now_s: float) -> None:
        """The sandbox was used for an instant."""
        self.last_use_s = now_s

    def replace(self, lifetime: Lifetime, now_s: float) -> None:
        """Other limits from now on; asking for them is a use."""
        self.lifetime = lifetime
        self.last_use_s = now_s

    def due(self, now_s: float, unix_s: float) -> Ending | None:
        """What has struck by now; the deadline when both have."""
        if self.lifetime.ends_at_unix_s and unix_s >= self.lifetime.ends_at_unix_s:
            return Ending.DEADLINE
        if self.lifetime.idle_timeout_s and not self.uses and self._idle_left_s(now_s) <= 0:
            return Ending.IDLE
        return None

    def action(self, ending: Ending) -> TimeoutAction:
        """What such an end is to be."""
        return self.lifetime.idle_action if ending is Ending.IDLE else self.lifetime.deadline_action

    def sleep_s(self, now_s: float, unix_s: float) -> float:
        """How long nothing can become due, at most half a minute."""
        left = _LONGEST_SLEEP_S
        if self.lifetime.ends_at_unix_s:
            left = min(left, self.lifetime.ends_at_unix_s - unix_s)
        if self.lifetime.idle_timeout_s:
            left = min(left, self.lifetime.idle_timeout_s if self.uses else self._idle_left_s(now_s))
        return max(0.0, left)

    def _idle_left_s(self, now_s: float) -> float:
        return self.last_use_s + self.lifetime.idle_timeout_s - now_s
