"""Sessions, from a /proc made of files."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from wrenn_sandbox.envd import sessions


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sessions, "PROC", tmp_path)
    (tmp_path / "meminfo").touch()
    for pid, name, state, session in [
        (10, "sh", "S", 10),
        (11, "we) R (ird", "R", 10),
        (12, "gone", "Z", 10),
        (20, "else", "S", 20),
    ]:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {state} 1 {session} {session} 0 -1 4194560 100")
    (tmp_path / "30").mkdir()  # ended while the list was read
    return tmp_path


def test_stat_lines() -> None:
    assert sessions.parse_stat("7 (a) b (c) S 1 2 33 4 5 6") == ("S", 33)


def test_members(proc: Path) -> None:
    assert sorted(sessions.session_members(10)) == [10, 11]
    assert sessions.session_members(99) == []


def test_all_of_a_session_is_killed_and_those_who_came_meanwhile(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        sent.append((pid, number))
        if pid == 11 and not (proc / "13").exists():
            (proc / "13").mkdir()
            (proc / "13" / "stat").write_text("13 (fork) R 1 10 10 0")
        if pid == 13:
            raise ProcessLookupError

    monkeypatch.setattr(sessions.os, "killpg", lambda group, number: sent.append((-group, number)))
    monkeypatch.setattr(sessions.os, "kill", kill)
    sessions.kill_session(10)
    assert sent[0] == (-10, signal.SIGKILL)
    assert sorted(pid for pid, _ in sent[1:]) == [10, 11, 13]


def test_a_number_with_a_new_owner_is_left_alone(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(sessions.os, "killpg", lambda group, number: sent.append(group))
    assert not sessions.signal_group(10, 9, leader_waited=True)
    assert sent == []
    assert sessions.signal_group(10, 9, leader_waited=False)
    assert sessions.signal_group(44, 9, leader_waited=True)
    assert sent == [10, 44]


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
def test_a_group_that_is_gone(proc: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]) -> None:
    def killpg(group: int, number: int) -> None:
        raise error

    monkeypatch.setattr(sessions.os, "killpg", killpg)
    assert not sessions.signal_group(44, 9, leader_waited=True)
