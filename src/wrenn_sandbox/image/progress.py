"""How a build tells what it does: one line when a step begins or ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


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


class Progress(Protocol):
    """Whoever shows a build."""

    def started(self, name: str, doing: str) -> None:
        """Step ``name`` has work to do; ``doing`` says what in a few words."""

    def finished(self, report: StepReport) -> None:
        """A step ended."""


class Silent:
    """Shows nothing."""

    def started(self, name: str, doing: str) -> None:
        """Ignore it."""

    def finished(self, report: StepReport) -> None:
        """Ignore it."""


def line_started(name: str, doing: str) -> str:
    """The line for a step that begins."""
    return f"  {name:<10} … {doing}"


def line_finished(report: StepReport) -> str:
    """The line for a step that ended, e.g. ``tools      built in 14.2 s  45.1 MB  3f0c…``."""
    took = f" in {report.seconds:.1f} s" if report.outcome is not Outcome.CURRENT else ""
    size = f"  {report.size_bytes / 1e6:.1f} MB" if report.size_bytes else ""
    return f"  {report.name:<10} {report.outcome.value}{took}{size}  {report.digest[:12]}".rstrip()
