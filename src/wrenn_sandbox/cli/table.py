"""Answers as tables, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: More than any row takes: what a narrow terminal wraps can still be read and copied, what is cut off cannot.
_WIDE = 400


def show(columns: Mapping[str, str], items: Iterable[Mapping[str, object]]) -> None:
    """Print a table. ``columns``: heading to the field that stands below it; what an item lacks stays empty."""
    from rich.console import Console  # what no other command should wait for
    from rich.table import Column, Table

    table = Table(*(Column(heading, no_wrap=True) for heading in columns), box=None)
    for item in items:
        table.add_row(*(str(item.get(field, "")) for field in columns.values()))
    Console(width=_WIDE).print(table, markup=False)
