"""What a running sandbox is made of, and what it stands on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import aiohttp

from wrenn_sandbox.core.artefacts import Manifest
from wrenn_sandbox.disk.build import parse_id
from wrenn_sandbox.hostagent.guest import Guest
from wrenn_sandbox.net.network import Link
from wrenn_sandbox.vmm.driver import Machine


@dataclass(slots=True)
class Ground:
    """What a machine stands on; it changes with every snapshot that lets the sandbox go on.

    ``parent`` is the manifest of the build, or base template, that its memory is compared with. ``pending`` are layers
    between its disk and that build which are in no build: left by a snapshot that failed after the machine went on.
    """

    parent: Manifest
    memory: Path  # the RAM file it has mapped
    disk: Path  # the overlay it writes to
    pending: tuple[Path, ...] = ()  # lowest first
    recorded: UUID | None = None  # another parent than this one, which the record on disk still names

    @property
    def parent_id(self) -> UUID:
        """The id of that build."""
        return parse_id(self.parent.build_id)

    @property
    def stands_on(self) -> frozenset[UUID]:
        """The builds that it, or whoever takes it over, needs."""
        return frozenset({self.parent_id} if self.recorded is None else {self.parent_id, self.recorded})


@dataclass(frozen=True, slots=True)
class Parts:
    """A running sandbox's parts, all owned by the stack they were put on."""

    directory: Path
    link: Link
    machine: Machine
    guest: Guest
    relay: aiohttp.ClientSession  # for the ports of its programs
    ground: Ground
