"""How long each phase of an operation took, in the order in which the phases began."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Phase:
    """One finished phase."""

    name: str
    ms: float


@dataclass(slots=True)
class Stopwatch:
    """Collects phases; ``doing`` names the one that runs now, in words for users."""

    phases: list[Phase] = field(default_factory=list)
    doing: str = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body; a phase that fails is not listed."""
        began = time.perf_counter()
        yield
        self.phases.append(Phase(name, (time.perf_counter() - began) * 1000))
