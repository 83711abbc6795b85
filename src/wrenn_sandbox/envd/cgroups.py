"""The guest's control groups (cgroup v2, Documentation/admin-guide/cgroup-v2.rst), so that user programs cannot
starve terminals, port forwarders or envd.

    user     weight  50, memory.high a little below all memory: a hog is slowed down and reclaimed before the guest is
    ptys     weight 200: a terminal answers while a build runs
    socats   weight 150, some memory of its own
    envd     weight 300, some memory of its own

Where version 2 cannot be used, processes simply stay where they are.
"""

from __future__ import annotations

import ctypes
import enum
import logging
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
ENVD_OOM_SCORE_ADJ = -900
ENVD_NICE = -5
MIB = 1024 * 1024
#: mount(2): remount, and as it was mounted: no devices, no programs, no set-user-id.
REMOUNT_FLAGS = 32 | 2 | 4 | 8


class Group(enum.Enum):
    """The groups, by directory name."""

    USER = "user"
    PTYS = "ptys"
    SOCATS = "socats"
    ENVD = "envd"


def settings(total_memory_bytes: int) -> dict[Group, dict[str, int]]:
    """What to write into which file of which group of a guest with that much memory."""
    return {
        Group.USER: {
            "cpu.weight": 50,
            "memory.high": total_memory_bytes - min(total_memory_bytes // 8, 128 * MIB),
        },
        Group.PTYS: {"cpu.weight": 200},
        Group.SOCATS: {"cpu.weight": 150, "memory.min": 5 * MIB, "memory.low": 8 * MIB},
        Group.ENVD: {"cpu.weight": 300, "memory.min": 24 * MIB, "memory.low": 48 * MIB},
    }


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The groups that were made; ``root`` None when there are none."""

    root: Path | None

    def procs(self, group: Group) -> Path | None:
        """The file a process writes itself into to join ``group``; None where there are no groups."""
        return self.root / group.value / "cgroup.procs" if self.root is not None else None

    @classmethod
    def prepare(cls, log: logging.Logger, root: Path = ROOT) -> Cgroups:
        """Make the groups and move envd into its own. Needs root and a writable cgroup2 file system at ``root``."""
        try:
            controllers = (root / "cgroup.controllers").read_text(encoding="ascii").split()
            wanted = [name for name in ("cpu", "memory") if name in controllers]
            (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted), encoding="ascii")
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            for group, files in settings(total).items():
                directory = root / group.value
                directory.mkdir(exist_ok=True)
                for name, value in files.items():
                    if name.partition(".")[0] in wanted:
                        (directory / name).write_text(str(value), encoding="ascii")
            (root / Group.ENVD.value / "cgroup.procs").write_text("0", encoding="ascii")
        except OSError as error:
            log.warning("no control groups: %s", error)
            return cls(None)
        _favour_moves(root, log)
        return cls(root)


def _favour_moves(root: Path, log: logging.Logger) -> None:
    """Make joining a group cheap: every process joins one, and by default each waits for an RCU grace period."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", bytes(root), None, REMOUNT_FLAGS, b"favordynmods"):
        log.info("joining a control group stays slow: %s", os.strerror(ctypes.get_errno()))


def protect_self(log: logging.Logger) -> None:
    """Let the kernel take envd last when memory ends, and run it before what it serves."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(ENVD_OOM_SCORE_ADJ), encoding="ascii")
        os.setpriority(os.PRIO_PROCESS, 0, ENVD_NICE)
    except OSError as error:
        log.warning("envd has no privilege over user programs: %s", error)
