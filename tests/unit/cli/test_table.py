from __future__ import annotations

from wrenn_sandbox.cli.table import show


def test_what_an_item_lacks_stays_empty_and_nothing_is_markup(capsys) -> None:
    show({"ID": "id", "NAME": "name"}, [{"id": "1", "name": "[red]x[/red]"}, {"id": "2"}])
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["ID", "NAME"]
    assert [row.split() for row in rows] == [["1", "[red]x[/red]"], ["2"]]
