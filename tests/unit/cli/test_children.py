"""What is known of a child from its files."""

from __future__ import annotations

from pathlib import Path

from wrenn_sandbox.cli import children


def _child(folder: Path) -> children.Child:
    return children.Child("agent", "module", (), folder / "ready.json", folder / "agent.log", 1.0)


def test_the_end_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(str(i) for i in range(100)))
    assert children._tail(tmp_path / "log", 3) == "97\n98\n99"
    assert children._tail(tmp_path / "none") == ""


def test_ready_info_is_an_object(tmp_path: Path) -> None:
    child = _child(tmp_path)
    child.ready_file.write_text('{"url": "u"}')
    assert children.ready_info(child) == {"url": "u"}
    child.ready_file.write_text("[]")
    assert children.ready_info(child) == {}
