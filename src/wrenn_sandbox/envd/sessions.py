"""Signals to everything a process started, by process group and by session.

A group's or session's number is its first process's pid (credentials(7)), and the kernel gives that number to nobody
else as long as one member lives. Once the leader was waited for and the last member ended, it may be given anew: that
is what the checks here are about.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
#: A member may fork while the list is read; each pass catches the children of the one before.
KILL_PASSES = 10


def parse_stat(stat: str) -> tuple[str, int]:
    """State letter and session of a ``/proc/PID/stat`` line (proc(5)); the command name may hold anything."""
    fields = stat[stat.rindex(")") + 2 :].split(" ", 5)
    return fields[0], int(fields[3])


def session_members(session: int) -> list[int]:
    """The living processes of a session, zombies left out."""
    members = []
    for entry in os.listdir(PROC):  # noqa: PTH208 - names only, no Path for each of hundreds
        if not entry.isdecimal():
            continue
        with suppress(OSError, ValueError):
            state, owner = parse_stat((PROC / entry / "stat").read_text(encoding="ascii", errors="replace"))
            if owner == session and state not in "ZX":
                members.append(int(entry))
    return members


def signal_group(group: int, number: int, *, leader_waited: bool) -> bool:
    """Send a signal to a process group we started; whether anybody got it."""
    if leader_waited and (PROC / str(group)).exists():
        return False  # the number has a new owner: the old group is gone
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_session(session: int) -> None:
    """SIGKILL all of a session whose leader was not waited for yet, whatever groups its members made."""
    signal_group(session, signal.SIGKILL, leader_waited=False)
    killed: set[int] = set()
    for _ in range(KILL_PASSES):
        members = set(session_members(session)) - killed
        if not members:
            return
        for pid in members:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= members
