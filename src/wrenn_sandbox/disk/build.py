"""One build: an immutable directory, and what a machine needs of it and of those below.

::

    builds/<uuid>/
      manifest.json     what it is, with the SHA-256 of every other file
      state             device state
      memory            the pages that changed, one after another; all of RAM in a base template
      memory.header     where every page is: here or below
      disk.qcow2        the overlay as it was
      memory.flat       all of RAM, made behind for restores; flattening makes it the build's memory
      disk.flat.qcow2   after flattening: the disk straight above the root file system image
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol
from uuid import UUID

import numpy as np

from wrenn_sandbox.core import header as headers
from wrenn_sandbox.core.artefacts import FLAT, Manifest
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.core.ids import BuildId
from wrenn_sandbox.disk import durability
from wrenn_sandbox.disk.gc import flat_storage
from wrenn_sandbox.disk.pages import PageSource
from wrenn_sandbox.vmm.driver import Patch

MANIFEST = "manifest.json"
STATE, MEMORY, HEADER, DISK = "state", "memory", "memory.header", "disk.qcow2"
FLAT_MEMORY = "memory.flat"
FLAT_DISK = "disk.flat.qcow2"
_MIB = 1 << 20


class Below(Protocol):
    """Where the files of other builds are."""

    def build(self, build_id: UUID) -> Build:
        """The build with this id; raises NotFound (``build_not_found``)."""

    def storage(self, storage: UUID) -> tuple[Build, Path]:
        """The file of memory pages that headers call ``storage``, and its build; raises NotFound."""

    def root(self, build: Build) -> Path:
        """The root file system image below its disk."""


@dataclass(frozen=True)
class Build:
    """A build as it was when it was looked up. Flattening puts other files of equal content in its place, so whoever
    opens files holds it by ``BuildStore.pinned`` meanwhile and does not keep it for later.
    """

    directory: Path
    manifest: Manifest
    below: Below

    @property
    def id(self) -> UUID:
        """Its id."""
        return parse_id(self.manifest.build_id)

    @property
    def memory(self) -> Path:
        """The file that holds its own pages."""
        return self.directory / self.manifest.memory

    @property
    def state(self) -> Path:
        """The device state."""
        return self.directory / self.manifest.state

    @property
    def disk(self) -> Path:
        """Its own qcow2 layer."""
        return self.directory / self.manifest.disk

    @property
    def flat(self) -> Path | None:
        """A file that is its RAM, byte by byte; None when there is none yet."""
        if self.manifest.memory_header == FLAT:
            return self.memory
        path = self.directory / FLAT_MEMORY
        return path if path.exists() else None

    @property
    def size_bytes(self) -> int:
        """The disk space it takes beyond its parents."""
        with durability.disk_errors(f"the build {self.id}"):
            return durability.allocated_bytes(self.directory)

    @cached_property
    def header(self) -> Header:
        """Where every page of its memory is. Raises Unavailable (``build_broken``)."""
        if self.manifest.memory_header == FLAT:
            storage = flat_storage(self.id) if is_flattened(self.manifest) else self.id
            return Header.flat(self.manifest.shape.memory_mib * _MIB, storage)
        return self._parsed(self.manifest.memory_header)

    def source(self) -> PageSource:
        """Its memory, page by page, for the length of a context."""
        return PageSource(self.header, self.files())

    def restore_plan(self) -> tuple[Path, tuple[Patch, ...]]:
        """The file to map as RAM, and what to write over it: the flat file that needs the least of that."""
        if self.flat is not None:
            return self.flat, ()
        files, plans = self.files(), []
        for path, header in self.flat_files().items():
            changed = list(self.header.changed_since(header))
            plans.append((sum(e.length for e in changed), path, changed))
        if not plans:
            raise broken(self.directory, "no RAM file is left below it")
        _, path, changed = min(plans, key=lambda plan: plan[0])
        return path, tuple(
            Patch(e.offset, e.length, None if e.build_id is None else files[e.build_id], e.storage_offset)
            for e in changed
        )

    def disk_layers(self) -> tuple[Path, ...]:
        """Every file of its disk, nearest first, down to the root file system image.

        Only the nearest build below is asked, and then its nearest: what lay below that one once does not matter after
        it was flattened.
        """
        layers, build = [self.disk], self
        while build.manifest.disk_chain:
            build = self.below.build(parse_id(build.manifest.disk_chain[0]))
            layers.append(build.disk)
        return (*layers, self.below.root(build))

    def files(self) -> Mapping[UUID, Path]:
        """The file of every storage that its header names. Its own ones are in this very directory."""
        found, own = {}, (self.id, flat_storage(self.id))
        for storage in self.header.builds():
            try:
                found[storage] = self.memory if storage in own else self.below.storage(storage)[1]
            except NotFound as error:
                raise broken(self.directory, f"the memory {storage} below it is gone") from error
        return found

    def flat_files(self) -> Mapping[Path, Header]:
        """RAM files that a restore can begin with, its own or of builds below, each with where its pages are from."""
        if self.flat is not None:
            return {self.flat: self.header}
        found: dict[Path, Header] = {}
        for storage in {*self.header.builds(), self.header.base_build_id} - {self.id}:
            try:
                build, path = self.below.storage(storage)
            except NotFound:  # the base, when no page of it is left
                continue
            if build.flat is not None:
                # What was captured before the build below was flattened knows its pages by their packed places.
                packed = is_flattened(build.manifest) and path != build.flat
                found[build.flat] = build._parsed(HEADER) if packed else build.header
        return {path: header for path, header in found.items() if header.size == self.header.size}

    def _parsed(self, name: str) -> Header:
        try:
            return headers.parse((self.directory / name).read_bytes())
        except OSError as error:
            raise broken(self.directory, f"its memory header cannot be read ({error.strerror})") from error


def packed_bytes(build: Build) -> int:
    """How long a build's own file of pages must be for its header."""
    table = build.header.entries
    names = (build.id, flat_storage(build.id))
    own = np.isin(table.build, [n for n, storage in enumerate(table.builds, 1) if storage in names])
    return int((table.storage + table.count)[own].max(initial=0)) * PAGE


def is_flattened(manifest: Manifest) -> bool:
    """Whether its memory was packed pages once and is one flat file now."""
    return manifest.memory == FLAT_MEMORY


def parse_id(text: str) -> UUID:
    """A build's id as manifests have it: a plain UUID, or with the prefix of ids; raises Unavailable."""
    try:
        return UUID(text.removeprefix(f"{BuildId.prefix}-"))
    except ValueError as error:
        raise Unavailable(f"{text[:80]!r} is not the id of a build.", slug="build_broken") from error


def read_manifest(directory: Path) -> Manifest:
    """The manifest in ``directory``; raises NotFound (``build_not_found``) or Unavailable (``build_broken``)."""
    try:
        return Manifest.from_json(json.loads((directory / MANIFEST).read_bytes()))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise not_found(directory.name) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken(directory, "its manifest cannot be read") from error


def encoded(manifest: Manifest) -> bytes:
    """What ``read_manifest`` reads."""
    return (json.dumps(manifest.to_json(), indent=2) + "\n").encode()


def named_files(manifest: Manifest) -> tuple[str, ...]:
    """The names of all the files that the manifest is about."""
    header = () if manifest.memory_header == FLAT else (manifest.memory_header,)
    return (manifest.state, manifest.memory, *header, manifest.disk)


def not_found(name: str) -> NotFound:
    """There is no such build on this host."""
    return NotFound(
        f"This host has no build {name}: list the sandbox's snapshots and take one of them.", slug="build_not_found"
    )


def broken(directory: Path, why: str) -> Unavailable:
    """The files of a build do not hold together."""
    return Unavailable(
        f"The build in {directory} is broken: {why}. Resume from another snapshot, or restore its files from a backup.",
        slug="build_broken",
    )
