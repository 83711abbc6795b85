from __future__ import annotations

from wrenn_sandbox.cli.table import show


def test_what_an_item_lacks_stays_empty_and_nothing_is_markup(capsys) -> None:
    show({"ID": "id", "NAME": "name"}, [{"id": "1", "name": "[red]x[/red]"}, {"id": "2"}])
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["ID", "NAME"]
    assert [row.split() for row in rows] == [["1", "[red]x[/red]"], ["2"]]


def test_nothing_is_cut_off_where_there_is_no_terminal(capsys) -> None:
    long = "sb-a34ad736-9c73-4455-98b1-725409273dd2"
    show({"ID": "id", "STATUS": "status", "CREATED": "at"}, [{"id": long, "status": "running", "at": long}])
    assert capsys.readouterr().out.splitlines()[1].split() == [long, "running", long]
