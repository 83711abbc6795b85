"""What of this machine a test may have left behind: processes, namespaces, links, mounts, loops, nft tables, files.

``Footprint.take()`` before and after; ``left_behind`` lists what is new. Processes count when they descend from this
one, and it adopts its descendants' orphans, so none can get away and no other user of the machine disturbs a test. For
the same reason a test whose names all begin with a tag counts only such namespaces, links and nft tables: on a machine
with other users, theirs come and go meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_NAMESPACES = "/run/netns/"


@dataclass(frozen=True)
class Footprint:
    """Names of everything that counts, by kind."""

    processes: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]
    mounts: frozenset[str]
    loops: frozenset[str]
    tables: frozenset[str]
    descriptors: frozenset[str]

    @classmethod
    def take(cls) -> Footprint:
        """Look at this machine now."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return cls(
            processes=_processes(),
            namespaces=_listed(Path(_NAMESPACES)),
            links=frozenset(name for _, name in socket.if_nameindex()),
            mounts=frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
            loops=frozenset(p.parent.name for p in Path("/sys/block").glob("loop*/loop")),
            tables=_tables(),
            descriptors=_descriptors(),
        )

    def of(self, *tags: str) -> Footprint:
        """The same, but of namespaces, links and tables only those of these tags."""

        def ours(names: frozenset[str]) -> frozenset[str]:
            return frozenset(name for name in names if name.removeprefix(_NAMESPACES).startswith(tags))

        tables = frozenset(table for table in self.tables if table.split()[-1].startswith(tags))
        mounts = frozenset(name for name in self.mounts if not name.startswith(_NAMESPACES))
        return replace(
            self,
            namespaces=ours(self.namespaces),
            links=ours(self.links),
            mounts=mounts | ours(self.mounts - mounts),
            tables=tables,
        )

    def left_behind(self, before: Footprint) -> dict[str, list[str]]:
        """What is here now and was not before, by kind; empty when clean."""
        kinds = ("processes", "namespaces", "links", "mounts", "loops", "tables", "descriptors")
        new = {kind: sorted(getattr(self, kind) - getattr(before, kind)) for kind in kinds}
        return {kind: names for kind, names in new.items() if names}


def _listed(folder: Path) -> frozenset[str]:
    return frozenset(p.name for p in folder.iterdir()) if folder.exists() else frozenset()


def _tables() -> frozenset[str]:
    if os.geteuid() != 0:
        return frozenset()
    try:
        done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return frozenset()
    return frozenset(done.stdout.split("\n")) - {""}


def _processes() -> frozenset[str]:
    parents, names, ended = {}, {}, set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        pid, fields = int(entry.name), stat.rpartition(")")[2].split()
        parents[pid] = int(fields[1])
        names[pid] = f"{pid} {command[:160] or fields[0]}"  # a zombie has no command
        if fields[0] == "Z" and parents[pid] == os.getpid():
            ended.add(pid)  # an adopted orphan that nobody asked for
    return frozenset(names[pid] for pid in names if _descends(pid, os.getpid(), parents) and pid not in ended)


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid := parents.get(pid, 0):
        if pid == ancestor:
            return True
    return False


def _descriptors() -> frozenset[str]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if (
            not target.startswith(("/dev/pts", "pipe:", "/proc/self/fd", "anon_inode:[event"))
            and "/proc/" not in target
        ):
            found.add(f"{link.name} -> {target}")
    return frozenset(found)
