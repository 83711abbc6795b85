from __future__ import annotations

from pathlib import Path

import pytest

from wrenn_sandbox.vmm import keeper


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of 1 ── 10 ── 11 ── 12 and 1 ── 20, with names as nasty as they come."""
    for pid, parent, name in ((1, 0, "init"), (10, 1, "a) R 9"), (11, 10, "b c"), (12, 11, "(("), (20, 1, "x")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 0 0")
    (tmp_path / "30").mkdir()  # gone between the two looks
    (tmp_path / "self").mkdir()
    monkeypatch.setattr(keeper, "Path", lambda _: tmp_path)
    return tmp_path


def test_all_that_descends(proc: Path) -> None:
    assert sorted(keeper.descendants(10)) == [11, 12]
    assert sorted(keeper.descendants(1)) == [10, 11, 12, 20]
    assert keeper.descendants(20) == []


def test_stopping_goes_on_until_nothing_new_is_forked(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []

    def stop(pid: int, _: object) -> None:
        stopped.append(pid)
        if pid == 12:  # it had forked just before
            (proc / "13").mkdir()
            (proc / "13" / "stat").write_text("13 (late) R 12 0 0")

    monkeypatch.setattr(keeper, "send", stop)
    assert keeper.stop(10) == [11, 12, 13]
    assert sorted(stopped) == [11, 12, 13]
