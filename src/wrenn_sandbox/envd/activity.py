"""Whether a program runs in the guest at all: where none does, no port can open and nobody has to look for one.

An idle sandbox is most of a host's sandboxes most of the time, and under an emulated CPU a look once a second is most
of what an idle guest would do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wrenn_sandbox.envd.cgroups import Cgroups, Group

_POPULATED = "populated 1"


class Activity:
    """``begun`` is told of every process that starts; ``possible`` returns while any program runs."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    def begun(self) -> None:
        """A process has started."""
        self._begun.set()

    async def possible(self, busy: Callable[[], bool]) -> None:
        """Return at once when ``busy``, else when the next process starts."""
        self._begun.clear()
        if not busy():
            await self._begun.wait()


def occupied(cgroups: Cgroups | None) -> bool:
    """A program runs in a group of users' processes; what cannot be known counts as yes (cgroup.events, cgroup-v2)."""
    if cgroups is None or cgroups.root is None:
        return True
    try:
        return any(
            _POPULATED in (cgroups.root / group.value / "cgroup.events").read_text(encoding="ascii")
            for group in (Group.USER, Group.PTYS)
        )
    except OSError:
        return True
