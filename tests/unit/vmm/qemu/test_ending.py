from __future__ import annotations

import pytest

from wrenn_sandbox.vmm.process import UNKNOWN_CODE
from wrenn_sandbox.vmm.qemu.ending import describe


@pytest.mark.parametrize(
    ("code", "stderr", "expected"),
    [
        (0, "", "The guest shut down or rebooted."),
        (
            -9,
            "",
            "The machine was killed (signal 9): by an operator, or by the kernel because the host ran out of memory.",
        ),
        (-31, "", "The machine was killed because it made a forbidden system call (signal 31)."),
        (-11, "internal error\n", "The machine crashed (signal 11): internal error."),
        (1, "qemu: cannot allocate memory\n", "QEMU failed with exit code 1: qemu: cannot allocate memory."),
        (1, "", "QEMU failed with exit code 1."),
        (UNKNOWN_CODE, "", "The machine ended while no agent was its parent."),
    ],
)
def test_each_way_to_end_has_a_sentence(code: int, stderr: str, expected: str) -> None:
    assert describe(code, "", stderr) == expected


def test_a_panic_of_the_guest_comes_first() -> None:
    console = "booting\r\n[    1.2] Kernel panic - not syncing: VFS: no root\r\n[    1.3] CPU: 0\r\n"
    assert describe(0, console, "noise") == "The guest's kernel panicked: VFS: no root."


def test_only_the_last_lines_are_quoted() -> None:
    said = describe(1, "", "".join(f"line {n} {'x' * 150}\n" for n in range(100)))
    assert "line 99" in said
    assert "line 96" not in said
    assert len(said) < 500


def test_one_endless_line_is_cut() -> None:
    assert len(describe(1, "", "y" * 100_000)) < 500
