"""How a build tells what it does: one line when a step begins its work, one when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

#: Takes one line, without its end.
Progress = Callable[[str], None]


class Outcome(Enum):
    """How a step ended."""

    BUILT = "built"
    CURRENT = "current"  # inputs unchanged, nothing was done
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step. ``digest`` is the artefact's content hash, empty when the step failed."""

    name: str
    outcome: Outcome
    seconds: float
    digest: str = ""
    size_bytes: int = 0


def line_started(name: str, doing: str) -> str:
    """The line for a step that begins, e.g. ``tools      … building the tools disk``."""
    return f"  {name:<10} … {doing}"


def line_finished(report: StepReport) -> str:
    """The line for a step that ended, e.g. ``tools      built in 14.2 s  45.1 MB  3f0c…``."""
    took = f" in {report.seconds:.1f} s" if report.outcome is not Outcome.CURRENT else ""
    size = f"  {report.size_bytes / 1e6:.1f} MB" if report.size_bytes else ""
    return f"  {report.name:<10} {report.outcome.value}{took}{size}  {report.digest[:12]}".rstrip()
