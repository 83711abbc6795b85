"""A process made of pipes: the test writes its output and says when it exits."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from wrenn_sandbox.envd import process as process_module
from wrenn_sandbox.envd import sessions

PID = 4242


class Kernel:
    """What Process asks of the kernel about a child, answered by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.signals: list[tuple[int, int]] = []
        self.group_alive = False
        self._status: SimpleNamespace | None = None
        self._exits: dict[int, int] = {}
        monkeypatch.setattr(process_module.os, "pidfd_open", self._pidfd_open)
        monkeypatch.setattr(process_module.os, "waitid", lambda *_: self._status)
        monkeypatch.setattr(sessions, "signal_group", self._signal_group)
        monkeypatch.setattr(sessions, "kill_session", lambda session: self.signals.append((session, 9)))

    def exit(self, code: int, *, how: int = os.CLD_EXITED, pid: int = PID) -> None:
        """The process ends; the loop will see it at its next turn."""
        self._status = SimpleNamespace(si_code=how, si_status=code)
        os.close(self._exits.pop(pid))

    def close(self) -> None:
        for fd in self._exits.values():
            os.close(fd)

    def _pidfd_open(self, pid: int) -> int:
        reading, self._exits[pid] = os.pipe()
        return reading

    def _signal_group(self, group: int, number: int, *, leader_waited: bool) -> bool:
        if number:
            self.signals.append((group, number))
        return self.group_alive


def output_pipe() -> tuple[int, int]:
    """Our end, as Process wants it, and the process's."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    return ours, theirs


def descriptors() -> set[str]:
    """What this process has open."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}
