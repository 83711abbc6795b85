"""The words of an end."""

from __future__ import annotations

import os

import pytest

from wrenn_sandbox.envd.ending import Ending, ending_of


@pytest.mark.parametrize(
    ("code", "status", "ending", "error"),
    [
        (os.CLD_EXITED, 0, Ending(0, True, "exit status 0"), None),
        (os.CLD_EXITED, 127, Ending(127, True, "exit status 127"), "exit status 127"),
        (os.CLD_KILLED, 9, Ending(-1, False, "signal: killed"), "signal: killed"),
        (os.CLD_KILLED, 15, Ending(-1, False, "signal: terminated"), "signal: terminated"),
        (os.CLD_KILLED, 35, Ending(-1, False, "signal: signal 35"), "signal: signal 35"),
        (
            os.CLD_DUMPED,
            11,
            Ending(-1, False, "signal: segmentation fault (core dumped)"),
            "signal: segmentation fault (core dumped)",
        ),
    ],
)
def test_endings(code: int, status: int, ending: Ending, error: str | None) -> None:
    assert ending_of(code, status) == ending
    assert ending.error == error
