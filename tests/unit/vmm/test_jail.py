from __future__ import annotations

import ast
import os
import resource
from pathlib import Path

import pytest

from wrenn_sandbox.vmm import jail


def test_it_imports_next_to_nothing() -> None:
    """Every import is paid for on every create."""
    tree = ast.parse(Path(jail.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"ctypes", "marshal", "os", "resource", "stat", "sys"}
    assert modules == {"__future__"}


class _Libc:
    """Notes calls; knows 41 capabilities, as Linux 6.1 does."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def prctl(self, option: int, argument: int, *_: int) -> int:
        if option == 24:
            self._calls.append("drop bounding")
            return 0 if argument < 41 else -1
        self._calls.append(f"prctl {option} {argument}")
        return 0

    def syscall(self, number: int, *_: object) -> int:
        self._calls.append(f"syscall {number}")
        return -1


def test_rights_go_in_an_order_that_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(jail, "_libc", _Libc(calls))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, value: calls.append(f"limit {kind} {value}"))
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *args, name=name: calls.append(f"{name} {args}"))
    jail._drop_rights(1001, 1002, [(resource.RLIMIT_CORE, 0)])
    assert calls[0] == f"limit {resource.RLIMIT_CORE} (0, 0)"
    assert calls.count("drop bounding") == 42
    assert [call for call in calls[1:] if call != "drop bounding"] == [
        "syscall 250",
        "setgroups ([],)",
        "setresgid (1002, 1002, 1002)",
        "setresuid (1001, 1001, 1001)",
        "prctl 38 1",
    ]
    assert calls.index("drop bounding") < calls.index("setresuid (1001, 1001, 1001)")


def test_a_failed_system_call_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    jail._check(0, "fine")
    monkeypatch.setattr("ctypes.get_errno", lambda: 1)
    with pytest.raises(OSError, match="pivot_root: Operation not permitted"):
        jail._check(-1, "pivot_root")
