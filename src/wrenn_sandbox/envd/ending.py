"""How a process ended, in the words clients compare literally (those of Go's ``os.ProcessState``)."""

from __future__ import annotations

import os
from dataclasses import dataclass

#: Linux signal numbers as Go's ``syscall.Signal.String`` says them; the rest are "signal N".
SIGNAL_TEXTS: dict[int, str] = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    5: "trace/breakpoint trap",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    10: "user defined signal 1",
    11: "segmentation fault",
    12: "user defined signal 2",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """``exit_code`` is -1 unless ``exited``; ``error`` repeats ``status`` unless the code is 0."""

    exit_code: int
    exited: bool
    status: str

    @property
    def error(self) -> str | None:
        """None for success, else the text that says what went wrong."""
        return self.status if self.exit_code != 0 else None


#: Somebody else waited for it. Never a success that was not seen.
UNKNOWN_ENDING = Ending(-1, False, "exit status unknown")


def ending_of(si_code: int, si_status: int) -> Ending:
    """The ending that waitid(2) reported."""
    if si_code == os.CLD_EXITED:
        return Ending(si_status, True, f"exit status {si_status}")
    text = f"signal: {SIGNAL_TEXTS.get(si_status, f'signal {si_status}')}"
    if si_code == os.CLD_DUMPED:
        text += " (core dumped)"
    return Ending(-1, False, text)
