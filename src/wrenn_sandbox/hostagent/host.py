"""Everything a sandbox needs of its host, in one record that the agent fills at start and tests fill with fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from wrenn_sandbox.core.artefacts import Manifest
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.disk.build import Build, parse_id
from wrenn_sandbox.hostagent.builds import Builds
from wrenn_sandbox.hostagent.capacity import Capacity
from wrenn_sandbox.hostagent.guest import Guest
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.net.network import Network
from wrenn_sandbox.vmm.driver import Driver, Patch


@dataclass(frozen=True, slots=True)
class Base:
    """A base template that is ready: a disk and the memory of a booted, warm and quiet guest."""

    directory: Path
    manifest: Manifest

    @property
    def memory(self) -> Path:
        """The RAM file."""
        return self.directory / self.manifest.memory

    @property
    def state(self) -> Path:
        """The device state."""
        return self.directory / self.manifest.state

    @property
    def disk(self) -> Path:
        """The qcow2 layer above the root file system image."""
        return self.directory / self.manifest.disk


@dataclass(frozen=True, slots=True)
class Origin:
    """What a machine is restored from. ``layers``: every file of the disk, nearest first, down to the root."""

    manifest: Manifest
    state: Path
    memory: Path
    patches: tuple[Patch, ...]
    layers: tuple[Path, ...]

    @property
    def build_id(self) -> UUID:
        """The build, or base template, it is."""
        return parse_id(self.manifest.build_id)

    @property
    def patched_bytes(self) -> int:
        """How much of the memory is written over the RAM file, and hence no other machine's."""
        return sum(patch.length for patch in self.patches)

    @classmethod
    def of_base(cls, base: Base, catalog: Catalog) -> Origin:
        """A base template."""
        rootfs = catalog.rootfs(base.manifest.artefacts.rootfs)
        return cls(base.manifest, base.state, base.memory, (), (base.disk, rootfs))

    @classmethod
    def of_build(cls, build: Build) -> Origin:
        """A pinned build. Blocks: it reads headers."""
        memory, patches = build.restore_plan()
        return cls(build.manifest, build.state, memory, patches, build.disk_layers())


class BaseTemplates(Protocol):
    """Where base templates come from."""

    async def ready(self, shape: Shape, tell: Callable[[str], None]) -> Base:
        """The base for ``shape``, made first if need be; ``tell`` hears what it waits for."""


class OverlayMaker(Protocol):
    """Makes an empty qcow2 overlay. Blocks; called in a thread."""

    def __call__(self, overlay: Path, backing: Path, backing_format: str) -> None:
        """Make the new file ``overlay`` above ``backing``, which is ``raw`` or ``qcow2``."""


class GuestOpener(Protocol):
    """Connects to envd of a restored machine."""

    def __call__(self, host_ip: str, access_token: str) -> AbstractAsyncContextManager[Guest]:
        """A client whose connections end with the context."""


@dataclass(frozen=True, slots=True)
class Host:
    """The parts of this host. ``starts`` bounds the restores under way: more at once only make each of them late."""

    driver: Driver
    network: Network
    catalog: Catalog
    capacity: Capacity
    templates: BaseTemplates
    builds: Builds
    make_overlay: OverlayMaker
    open_guest: GuestOpener
    run_root: Path
    starts: asyncio.Semaphore
