"""Fork: all children of one build are born, or none is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Child(Protocol):
    """A sandbox that is being made."""

    async def started(self) -> None:
        """Wait until it runs; raises what kept it from that."""

    def stop(self) -> None:
        """Begin its end."""

    async def ended(self) -> None:
        """Wait until nothing of it is left."""


async def born(children: Sequence[Child]) -> None:
    """Wait until all run. The first that cannot, or a cancel, takes all along; nothing of them is left then."""
    try:
        for child in children:
            await child.started()
    except BaseException:
        for child in children:
            child.stop()
        for child in children:
            await child.ended()
        raise
