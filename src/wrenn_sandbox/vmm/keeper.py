"""Stands above a fake machine, as a kernel stands above a guest: when the first process ends, all end.

Run as ``python -I keeper.py shared|private COMMAND...`` with one end of a SOCK_SEQPACKET pair as descriptor 3 and a RAM
file as descriptor 4. It maps the file, says ``mapped``, waits for ``go``, starts COMMAND and says its pid. Then it
adopts whatever COMMAND's children leave behind, and when COMMAND ends kills all of that and ends in the same way, so
that its own parent learns exit code or signal. Programs in a fake sandbox make sessions of their own; nothing else
would find them again.

The mapping is the machine's memory to everybody outside: nothing inside uses it, and it outlives a stop of the tree.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import time
from pathlib import Path

CONTROL_FD, MEMORY_FD = 3, 4
SHARED, PRIVATE = "shared", "private"
MAPPED, GO = b"mapped", b"go"
_PR_SET_CHILD_SUBREAPER, _PR_SET_PTRACER = 36, 0x59616D61  # linux/prctl.h
_PR_SET_PTRACER_ANY = -1
#: States of proc_pid_stat(5). One that sleeps in the kernel (D) takes the signal before it can fork.
_GONE = "X"
_HALTED = frozenset("TtDZ" + _GONE)
_HALT_LIMIT_S, _LOOK_EVERY_S = 1.0, 0.0002
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
        for member in new:
            await_halt(member)
        stopped |= new
    return sorted(stopped)


def await_halt(pid: int) -> None:
    """Return when a process that was sent SIGSTOP can fork no more: on another CPU it may be at it just now."""
    deadline = time.monotonic() + _HALT_LIMIT_S
    while _state(pid) not in _HALTED and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return _GONE


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; nothing happens when the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def main() -> None:
    """Keep the command on our command line."""
    mode, command = sys.argv[1], sys.argv[2:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Any agent of our user may reach the memory, not only the one that started us (Yama, ptrace(2)).
    libc.prctl(_PR_SET_PTRACER, ctypes.c_long(_PR_SET_PTRACER_ANY), 0, 0, 0)
    memory = mmap.mmap(MEMORY_FD, 0, flags=mmap.MAP_SHARED if mode == SHARED else mmap.MAP_PRIVATE)
    os.close(MEMORY_FD)
    os.write(CONTROL_FD, MAPPED)
    if os.read(CONTROL_FD, len(GO)) != GO:
        os._exit(1)
    first = os.fork()
    if first == 0:
        os.close(CONTROL_FD)
        os.setsid()
        os.execv(command[0], command)  # noqa: S606
    os.write(CONTROL_FD, b"%d" % first)
    os.close(CONTROL_FD)
    _end_as(first)
    memory.close()


def _end_as(first: int) -> None:
    """Wait for ``first``, end everything below us, and then ourselves in the way it ended."""
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
