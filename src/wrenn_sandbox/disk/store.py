"""The builds of a host agent, from draft to removal.

::

    <data dir>/
      builds/<uuid>/          see ``build``
      builds/.<uuid>.new      a draft, or what is left of one
      builds/.<uuid>.work     being materialised or flattened
      builds/.<uuid>.old      being removed
      holds/<holder>          see ``holds``

    draft ──publish──▶ build ──materialise──▶ with a flat RAM file ──flatten──▶ without anything below
                         └──────────────── collect, when nobody needs it ────────▶ gone

A build gets its name when all of it is on disk, and never changes after that but for files of equal content: those come
under names of their own, then the manifest that names them replaces the old one, and ``collect`` removes the old files
once nobody reads them. A host that dies at any point has the build as it was or as it was to be.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import structlog

from wrenn_sandbox.core.artefacts import FLAT, Manifest, Platform
from wrenn_sandbox.core.errors import Bug, NotFound, WrennError
from wrenn_sandbox.disk import chain, compatibility, durability, equality
from wrenn_sandbox.disk.build import (
    FLAT_DISK,
    FLAT_MEMORY,
    MANIFEST,
    Build,
    broken,
    encoded,
    named_files,
    packed_bytes,
    parse_id,
)
from wrenn_sandbox.disk.draft import Draft, settle
from wrenn_sandbox.disk.keeping import Keeping
from wrenn_sandbox.disk.materialise import materialise
from wrenn_sandbox.image.catalog import Catalog

log = structlog.get_logger()

#: A build of this many generations of memory, or layers of disk, is worth rewriting.
LONG_CHAIN = 8
#: Locks for the rewriting of builds, of which each stands for many.
_TURNS = 64


class BuildStore(Keeping):
    """The builds below ``root``. Methods block; any thread may call them."""

    def __init__(self, root: Path, catalog: Catalog) -> None:
        super().__init__(root, catalog)
        self._closed = threading.Event()
        self._turns = tuple(threading.Lock() for _ in range(_TURNS))

    def get(self, build_id: UUID) -> Build:
        """A build or base template, as it is now; raises NotFound (``build_not_found``). To read it: ``pinned``."""
        return self._library.build(build_id)

    def all(self) -> tuple[Build, ...]:
        """Every build but the base templates, oldest first. One that cannot be read is in the log only."""
        found = []
        for build_id in self._library.own_ids():
            try:
                found.append(self._library.build(build_id))
            except NotFound:  # removed meanwhile
                continue
            except WrennError as error:
                log.error("build cannot be read", build_id=str(build_id), error=error.message)
        return tuple(sorted(found, key=lambda build: (build.manifest.created_at_unix_s, build.id)))

    @contextmanager
    def draft(self, build_id: UUID, parent: UUID | None = None) -> Iterator[Draft]:
        """A directory aside for the files of a build; what was not published is gone when the context is left.

        The published build, and all that ``parent`` needs, are kept within the context: time to ``hold`` it. OSErrors
        in the body come out as Exhausted (``host_disk_full``) or Unavailable. Raises Conflict (``build_in_progress``).
        """
        directory = durability.aside(self._folder / str(build_id), durability.NEW)
        with self._pin(build_id, parent, drafted=True), durability.disk_errors(f"the build {build_id}"):
            durability.remove(directory)
            try:
                directory.mkdir()
                yield Draft(build_id, directory)
            finally:
                durability.remove(directory)

    def publish(self, draft: Draft, manifest: Manifest) -> Build:
        """Make a draft, of which ``manifest`` tells, durable under its name; what is there under that name stays.

        Fills in the hashes and the builds below the nearest one. Raises Unavailable (``build_broken``) when the draft
        is not whole or what it stands on is gone, Exhausted (``host_disk_full``); then there is no such build.
        """
        if parse_id(manifest.build_id) != draft.build_id:
            raise Bug(f"A draft of {draft.build_id} was published as {manifest.build_id}.")
        if (there := self._find(draft.build_id)) is not None:
            return there
        final = self._folder / str(draft.build_id)
        with durability.disk_errors(f"the build {draft.build_id}"):
            whole = self._completed(draft, manifest)
            (draft.directory / MANIFEST).write_bytes(encoded(whole))
            durability.sync(draft.directory / MANIFEST)
            durability.sync(draft.directory)
            with self._lock:
                self._require_ground(Build(draft.directory, whole, self._library))
                draft.directory.rename(final)
                try:
                    durability.sync(self._folder)
                except BaseException:
                    final.rename(draft.directory)
                    raise
        return self._library.build(draft.build_id)

    def require_runnable(self, build: Build, platform: Platform, tsc_khz: int) -> None:
        """Raise Conflict (``build_incompatible``) when ``build`` cannot run here; see ``compatibility``.

        Raises Unavailable (``build_broken``) when a file that it needs is gone.
        """
        compatibility.require_runnable(build.manifest, self._library.catalog, platform, tsc_khz)
        files = [*(build.directory / name for name in named_files(build.manifest)), *build.disk_layers()]
        if gone := [path for path in files if not path.exists()]:
            raise broken(build.directory, f"{gone[0]} is gone")

    def materialise(self, build_id: UUID) -> Path:
        """Give the build a flat RAM file, so that restores have nothing to write over it; returns that file.

        Raises Exhausted (``host_disk_full``), Bug when it is not equal: there is none then.
        """
        with self._at_work(build_id) as (build, work):
            return build.flat or self._materialised(build, work)

    def flatten(self, build_id: UUID) -> bool:
        """Rewrite a build with a long chain so that it needs no other; False when its chain is short.

        What it needed before is let go when it is on disk, proved equal. Raises as ``materialise`` does, and
        Unavailable (``agent_stopping``) when ``close`` was called.
        """
        with self._at_work(build_id) as (build, work):
            if not _is_long(build):
                return False
            memory = build.flat or self._materialised(build, work)
            layers, root = build.disk_layers()[:-1], self._library.root(build)
            chain.flatten(layers, root, work / FLAT_DISK, lambda: not self._closed.is_set())
            whole = replace(
                build.manifest,
                memory=memory.name,
                memory_header=FLAT,
                disk=FLAT_DISK,
                disk_chain=(),
                hashes={**build.manifest.hashes, **settle((memory, work / FLAT_DISK))},
            )
            durability.write(work / MANIFEST, encoded(whole))
            with self._lock:
                (work / FLAT_DISK).rename(build.directory / FLAT_DISK)
                durability.sync(build.directory)
                (work / MANIFEST).rename(build.directory / MANIFEST)
                durability.sync(build.directory)
            return True

    def verify(self, build_id: UUID) -> None:
        """Read every file of a build again; raises Unavailable (``build_broken``) with all that is wrong."""
        with self.pinned(build_id) as build, durability.disk_errors(f"the build {build_id}"):
            faults = list(_faults(build))
            if not faults:
                try:
                    self._require_ground(build)
                    if build.manifest.memory_header != FLAT and build.flat is not None and not _same(build, build.flat):
                        faults.append(f"{FLAT_MEMORY} is not its memory")
                except WrennError as error:
                    faults.append(error.message)
        if faults:
            raise broken(build.directory, "; ".join(faults))

    def close(self) -> None:
        """Let long work end early."""
        self._closed.set()

    @contextmanager
    def _at_work(self, build_id: UUID) -> Iterator[tuple[Build, Path]]:
        """One rewriting of a build at a time, and a folder for it."""
        work = durability.aside(self._folder / str(build_id), durability.WORK)
        with (
            self._turns[build_id.int % _TURNS],
            self.pinned(build_id) as build,
            durability.disk_errors(f"the build {build_id}"),
        ):
            if build.directory.parent != self._folder:
                raise Bug(f"{build.directory} is a base template, which is flat already.")
            durability.remove(work)
            try:
                work.mkdir()
                yield build, work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _materialised(self, build: Build, work: Path) -> Path:
        target = work / FLAT_MEMORY
        with build.source() as source:
            materialise(source, target)
        if not _same(build, target):
            raise Bug("A flat RAM file is not equal to the memory it came from and was removed.")
        durability.sync(target)
        target.chmod(0o444)
        with self._lock:
            target.rename(build.directory / FLAT_MEMORY)
            durability.sync(build.directory)
        return build.directory / FLAT_MEMORY

    def _completed(self, draft: Draft, manifest: Manifest) -> Manifest:
        """The manifest with hashes, and the files it names on disk."""
        below: tuple[str, ...] = ()
        if manifest.disk_chain:
            nearest = self._find(parse_id(manifest.disk_chain[0]))
            if nearest is None:
                raise broken(draft.directory, f"the build {manifest.disk_chain[0]} below its disk is gone")
            below = (str(nearest.id), *(str(parse_id(b)) for b in nearest.manifest.disk_chain))
        files = [draft.directory / name for name in named_files(manifest)]
        if missing := [path.name for path in files if not path.is_file()]:
            raise broken(draft.directory, f"it has no {', '.join(missing)}")
        for path in draft.directory.iterdir():
            if path not in files:
                path.unlink()
        return replace(manifest, build_id=str(draft.build_id), disk_chain=below, hashes=dict(settle(files)))

    def _require_ground(self, build: Build) -> None:
        """Raise Unavailable (``build_broken``) unless everything below is there."""
        try:
            if build.manifest.memory_header != FLAT and build.header.build_id != build.id:
                raise broken(build.directory, f"its memory header is that of {build.header.build_id}")
            if packed_bytes(build) > build.memory.stat().st_size:
                raise broken(build.directory, f"{build.memory.name} is shorter than its header says")
            build.files()
            if not build.flat_files():
                raise broken(build.directory, "no RAM file is left below it")
            if missing := [path for path in build.disk_layers() if not path.exists()]:
                raise broken(build.directory, f"{missing[0]} below its disk is gone")
        except NotFound as error:
            raise broken(build.directory, error.message) from error


def _is_long(build: Build) -> bool:
    return build.header.generation >= LONG_CHAIN or len(build.manifest.disk_chain) + 1 >= LONG_CHAIN


def _same(build: Build, flat: Path) -> bool:
    with build.source() as source:
        return equality.equal(source, flat)


def _faults(build: Build) -> Iterator[str]:
    named = named_files(build.manifest)
    for name in dict.fromkeys((*named, *build.manifest.hashes)):
        path, digest = build.directory / name, build.manifest.hashes.get(name)
        if not path.is_file():
            if name in named:
                yield f"{name} is gone"
        elif digest is not None and durability.sha256(path) != digest:
            yield f"{name} is not what was written"
