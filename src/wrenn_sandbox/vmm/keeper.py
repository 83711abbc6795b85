"""Stands above a fake machine, as a kernel stands above a guest: when the first process ends, all end.

Run as ``python -I keeper.py COMMAND...``. It starts COMMAND, writes its pid to descriptor 3, adopts whatever COMMAND's
children leave behind, and when COMMAND ends kills all of that and ends in the same way, so that its own parent learns
exit code or signal. Programs in a fake sandbox make sessions of their own; nothing else would find them again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

REPORT_FD = 3
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PARENT_FIELD = 1  # ppid, counted from field 3 of proc_pid_stat(5)


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``, zombies too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(fields[_PARENT_FIELD]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def parent(pid: int) -> int:
    """The parent of a live process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_PARENT_FIELD])


def stop(pid: int) -> list[int]:
    """Stop everything below ``pid`` and return it. Repeats until nothing new has been forked meanwhile."""
    stopped: set[int] = set()
    while new := set(descendants(pid)) - stopped:
        for member in new:
            send(member, signal.SIGSTOP)
        stopped |= new
    return sorted(stopped)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; nothing happens when the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def main() -> None:
    """Keep the command on our command line."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    first = os.fork()
    if first == 0:
        os.close(REPORT_FD)
        os.setsid()
        os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606
    os.write(REPORT_FD, b"%d" % first)
    os.close(REPORT_FD)
    pid = status = 0
    while pid != first:
        pid, status = os.wait()
    for member in stop(os.getpid()):
        send(member, signal.SIGKILL)
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
