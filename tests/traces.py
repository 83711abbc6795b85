"""What a running platform holds for its sandboxes: VMMs, namespaces, links, directories, descriptors, mounts."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path

from tests.running import Platform

#: Namespaces that the pool keeps warm for the next sandboxes.
WARM_SLOTS = 4


@dataclass(frozen=True)
class Traces:
    """Everything the host agent holds now."""

    machines: frozenset[int]
    namespaces: int
    links: int
    folders: frozenset[str]
    descriptors: int
    mounts: int

    @classmethod
    def take(cls, running: Platform) -> Traces:
        """Look at the platform's host agent and its data directory."""
        agent = running.pid_of("hostagent")
        tag = running.tag
        return cls(
            machines=frozenset(machines_of(agent)),
            namespaces=len(list(Path("/run/netns").glob(f"{tag}-ns-*"))),
            links=sum(name.startswith(f"{tag}-v") for _, name in socket.if_nameindex()),
            folders=frozenset(p.as_posix() for p in (running.data_dir / "run").iterdir() if p.is_dir()),
            descriptors=len(list(Path(f"/proc/{agent}/fd").iterdir())),
            mounts=sum("netns" not in m for m in Path(f"/proc/{agent}/mountinfo").read_text().splitlines()),
        )

    def left_behind(self, before: Traces) -> dict[str, object]:
        """What is held beyond ``before``; warm slots come and go."""
        found: dict[str, object] = {
            "machines": sorted(self.machines - before.machines),
            "folders": sorted(self.folders - before.folders),
            "namespaces": max(self.namespaces - max(before.namespaces, WARM_SLOTS), 0),
            "links": max(self.links - max(before.links, WARM_SLOTS), 0),
            "descriptors": max(self.descriptors - before.descriptors - DESCRIPTOR_SLACK, 0),
            "mounts": max(self.mounts - before.mounts, 0),
        }
        return {kind: value for kind, value in found.items() if value}


#: Pooled keep-alive connections between the platform's own processes, and the sockets of warm slots.
DESCRIPTOR_SLACK = 8


def machines_of(agent: int) -> list[int]:
    """Pids of the VMMs below the host agent: the agent reaps them, so they are its children."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
            if int(fields[1]) == agent and fields[0] != "Z" and (b"qemu" in command or b"envd" in command):
                found.append(int(entry.name))
    return found
