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
    monkeypatch.setattr(keeper, "Path", lambda path: tmp_path / path.removeprefix("/proc").lstrip("/"))
    return tmp_path


def test_all_that_descends(proc: Path) -> None:
    assert sorted(keeper.descendants(10)) == [11, 12]
    assert sorted(keeper.descendants(1)) == [10, 11, 12, 20]
    assert keeper.descendants(20) == []


def test_stopping_goes_on_until_nothing_new_is_forked(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []

    looks: list[int] = []

    def stop(pid: int, _: object) -> None:
        stopped.append(pid)

    def look(_: float) -> None:
        """Time passes: a process that was sent the signal runs on for a moment."""
        pid = next(p for p in stopped if p not in looks)
        looks.append(pid)
        if pid == 12:  # it was forking just then
            (proc / "13").mkdir()
            (proc / "13" / "stat").write_text("13 (late) R 12 0 0")
        stat = proc / str(pid) / "stat"
        stat.write_text(stat.read_text().replace(") S", ") T").replace(") R 12", ") T 12"))

    monkeypatch.setattr(keeper, "send", stop)
    monkeypatch.setattr(keeper.time, "sleep", look)
    assert keeper.stop(10) == [11, 12, 13]
    assert sorted(stopped) == sorted(looks) == [11, 12, 13]


@pytest.mark.parametrize("state", ["T", "t", "D", "Z"])
def test_who_has_halted_or_gone_is_not_waited_for(proc: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setattr(keeper.time, "sleep", None)
    (proc / "20" / "stat").write_text(f"20 (x) {state} 1 0 0")
    keeper.await_halt(20)
    keeper.await_halt(99)
