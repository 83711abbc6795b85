"""Answers as tables, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def show(columns: Mapping[str, str], items: Iterable[Mapping[str, object]]) -> None:
    """Print a table. ``columns``: heading to the field that stands below it; what an item lacks stays empty."""
    from rich.console import Console  # what no other command should wait for
    from rich.table import Column, Table

    table = Table(*(Column(heading, no_wrap=field == "id") for heading, field in columns.items()), box=None)
    for item in items:
        table.add_row(*(str(item.get(field, "")) for field in columns.values()))
    Console().print(table, markup=False)
