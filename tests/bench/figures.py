"""Figures of repeated measurements, and the table that sets them against the promises."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass
class Series:
    """Milliseconds (or any other unit) of one repeated measurement."""

    name: str
    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """One more."""
        self.values.append(value)

    @property
    def p50(self) -> float:
        """The median."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.p50:.1f} (min {min(self.values):.1f}, max {max(self.values):.1f}, n={len(self.values)})"


@dataclass(frozen=True)
class Row:
    """One promise: what was measured, the figure, the bound, whether it held."""

    promise: str
    measured: str
    bound: str
    held: bool | None = None


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| promise | measured | bound | held |", "|---|---|---|---|"]
    marks = {True: "yes", False: "**no**", None: "–"}
    lines += [f"| {r.promise} | {r.measured} | {r.bound} | {marks[r.held]} |" for r in rows]
    return "\n".join(lines)
