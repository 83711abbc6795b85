"""What a host agent writes down so that the next one can clear up after it.

::

    <data dir>/run/<sandbox id>/      one directory a machine, removed with it
      machine.json                    pid and start time of its VMM
      disk.qcow2                      its overlay
      vmm/                            control socket, console log and jail

A pid alone proves nothing after a crash, since numbers are used again; pid and start time together do.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

RECORD = "machine.json"
_KILL_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A VMM that runs. ``started_ticks`` is field 22 of /proc/PID/stat (proc_pid_stat(5))."""

    pid: int
    started_ticks: int
    slot: int


@contextmanager
def machine_directory(root: Path, name: str) -> Iterator[Path]:
    """A directory of its own for one machine, gone with all its contents when the context is left."""
    path = root / name
    path.mkdir(mode=0o700)
    try:
        (path / "vmm").mkdir(mode=0o700)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_record(directory: Path, pid: int, slot: int) -> None:
    """Note the VMM that was started for ``directory``; does nothing when it has ended already."""
    ticks = started_ticks(pid)
    if ticks is None:
        return
    temporary = directory / f"{RECORD}.new"
    temporary.write_text(json.dumps(asdict(MachineRecord(pid, ticks, slot))))
    temporary.replace(directory / RECORD)


def started_ticks(pid: int) -> int | None:
    """When a process was started, clock ticks since boot; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])  # the name in field 2 may hold spaces and brackets


def sweep(root: Path) -> int:
    """Kill the VMMs and remove the directories that a dead agent left in ``root``; returns how many those were."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = [path for path in root.iterdir() if path.is_dir()]
    for path in found:
        record = _read_record(path)
        if record is not None:
            _kill(record)
        shutil.rmtree(path, ignore_errors=True)
    return len(found)


def _read_record(directory: Path) -> MachineRecord | None:
    try:
        return MachineRecord(**json.loads((directory / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _kill(record: MachineRecord) -> None:
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        if started_ticks(record.pid) != record.started_ticks:  # looked at while the descriptor holds the number
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], _KILL_LIMIT_S)
    finally:
        os.close(pidfd)
