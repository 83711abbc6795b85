"""Which builds stay: holders, pins, and the collection of what nobody needs any more.

A build lives while something keeps it: a holder on disk, a running sandbox that the caller names, a pin of somebody at
work in this process, or another living build that has pages or disk layers in it. Removal renames aside, dependents
first, and then removes, so that a crash leaves builds that are whole and rubbish that says so by its name.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import structlog

from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.core.errors import Conflict, NotFound, Unavailable
from wrenn_sandbox.disk import durability, gc
from wrenn_sandbox.disk.build import DISK, FLAT_MEMORY, HEADER, MANIFEST, MEMORY, Build, is_flattened, named_files
from wrenn_sandbox.disk.holds import Holds, checked_holder
from wrenn_sandbox.disk.library import Library, Needed
from wrenn_sandbox.image.catalog import Catalog

log = structlog.get_logger()

BUILDS, HOLDS = "builds", "holds"
_OWNER_ONLY = 0o700


@dataclass(frozen=True, slots=True)
class _Pin:
    """``root`` is at work, and with it everything that was ``below`` when that began, as it was then."""

    root: UUID
    below: frozenset[UUID]
    drafted: bool = False


class Keeping:
    """The builds below ``root`` and who keeps them. Methods block; any thread may call them."""

    def __init__(self, root: Path, catalog: Catalog) -> None:
        self._folder = root / BUILDS
        self._library = Library(self._folder, catalog)
        self._holds = Holds(root / HOLDS)
        self._lock = threading.RLock()
        self._pins: dict[object, _Pin] = {}
        for folder in (self._folder, root / HOLDS):
            folder.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)

    def hold(self, holder: str, build_id: UUID) -> None:
        """Let ``holder`` keep this build instead of what it kept; on disk when this returns.

        ``holder`` is a sandbox or template id. Raises NotFound (``build_not_found``), Exhausted (``host_disk_full``).
        """
        checked_holder(holder)
        with self._lock, durability.disk_errors(f"the hold of {holder}"):
            self._library.build(build_id)
            self._holds.put(holder, build_id)

    def release(self, holder: str) -> None:
        """Let ``holder`` keep nothing; on disk when this returns. What only it kept goes with the next ``collect``."""
        with self._lock, durability.disk_errors(f"the hold of {holder}"):
            self._holds.drop(holder)

    def held(self) -> Mapping[str, UUID]:
        """The build of every holder of whom it is known: one unreadable hold is no reason to forget the others."""
        with self._lock, durability.disk_errors("the holds"):
            return self._holds.known()

    def held_by(self, holder: str) -> UUID | None:
        """The build of one holder, if it has one; raises Unavailable (``hold_broken``) when that is not known."""
        with self._lock, durability.disk_errors(f"the hold of {holder}"):
            return self._holds.of(holder)

    def is_disk_of(self, overlay: Path, build_id: UUID) -> bool:
        """Whether the file ``overlay`` became the disk layer of a build. Asks nothing else of that build."""
        disk = self._folder / str(build_id) / DISK
        with durability.disk_errors(f"the build {build_id}"):
            return overlay.exists() and disk.exists() and overlay.samefile(disk)

    @contextmanager
    def pinned(self, build_id: UUID) -> Iterator[Build]:
        """The build, whose files and those below all stay where they are within the context: for a restore, a capture
        or a copy. Raises NotFound (``build_not_found``).
        """
        with self._pin(build_id, build_id):
            yield self._library.build(build_id)

    def collect(self, in_use: Collection[UUID] = (), mapped: Collection[Path] = ()) -> tuple[UUID, ...]:
        """Remove every build that nobody needs, and files of living ones that flattening left; returns what went.

        ``in_use`` are the builds that running sandboxes were restored from or captured as last, ``mapped`` their RAM
        files. Base templates are never removed here. While the needs of a living build are unknown, nothing is.
        """
        with self._lock, durability.disk_errors("the folder of builds"):
            roots = {*in_use, *(owner for path in mapped if (owner := self._owner(path)) is not None)}
            needs, marked = self._marked(roots)
            if not marked.certain:
                log.warning("nothing is removed: the needs of a living build are unknown")
                return ()
            order = gc.removal_order(needs, set(self._library.own_ids()) - marked.builds)
            for build_id in order:
                self._put_aside(build_id)
            if order:
                durability.sync(self._folder)
            self._remove_surplus(marked, mapped)
        durability.remove_asides(self._folder, (durability.OLD,))
        return tuple(order)

    def sweep(self) -> int:
        """Remove what a dead agent left half-made or half-removed; returns how many of those there were."""
        with self._lock:
            busy = frozenset(
                f".{pin.root}{end}" for pin in self._pins.values() for end in (durability.NEW, durability.WORK)
            )
            ends = (durability.NEW, durability.WORK, durability.OLD)
            return durability.remove_asides(self._folder, ends, busy) + self._holds.sweep()

    def needed_bases(self, in_use: Collection[UUID] = ()) -> frozenset[str]:
        """Names of the directories of base templates that must stay, however long they were not used."""
        with self._lock:
            names = self._library.base_names()
            _, marked = self._marked(in_use)
            return frozenset(name for found, name in names.items() if found in marked.builds or not marked.certain)

    def needed_artefacts(self, in_use: Collection[UUID] = ()) -> frozenset[ArtefactSet]:
        """What living builds and all base templates need of the images directory.

        Raises Unavailable (``build_broken``) when that is not known of one of them.
        """
        with self._lock:
            bases = self._library.base_names()
            _, marked = self._marked({*in_use, *bases})
            if not marked.certain:
                raise Unavailable("What a build needs is unknown: look for it in the agent's log.", slug="build_broken")
            return frozenset(self._library.build(found).manifest.artefacts for found in marked.builds)

    @contextmanager
    def _pin(self, build_id: UUID, below: UUID | None, *, drafted: bool = False) -> Iterator[None]:
        """Keep ``build_id``, also when it only comes to be within the context, and all that ``below`` needs now."""
        token = object()
        with self._lock:
            if drafted and any(pin.root == build_id and pin.drafted for pin in self._pins.values()):
                raise Conflict(f"The build {build_id} is being made: wait for it.", slug="build_in_progress")
            marked = frozenset[UUID]()
            if below is not None:
                self._library.build(below)
                marked = gc.mark(self._everything(), (below,)).builds
            self._pins[token] = _Pin(build_id, marked, drafted)
        try:
            yield
        finally:
            with self._lock:
                del self._pins[token]

    def _everything(self) -> Needed:
        return Needed(frozenset({*self._library.own_ids(), *self._library.base_names()}), self._library.needs)

    def _marked(self, in_use: Collection[UUID]) -> tuple[Needed, gc.Marked]:
        pinned = {build_id for pin in self._pins.values() for build_id in (pin.root, *pin.below)}
        needs = self._everything()
        return needs, gc.mark(needs, {*self._holds.all().values(), *in_use, *pinned})

    def _owner(self, path: Path) -> UUID | None:
        """The build that a file belongs to."""
        names = {name: found for found, name in self._library.base_names().items()}
        if path.parent.parent == self._library.catalog.bases:
            return names.get(path.parent.name)
        return next((b for b in self._library.own_ids() if self._folder / str(b) == path.parent), None)

    def _put_aside(self, build_id: UUID) -> None:
        path = self._folder / str(build_id)
        old = durability.aside(path, durability.OLD)
        durability.remove(old)
        path.rename(old)
        self._library.forget(build_id)

    def _remove_surplus(self, marked: gc.Marked, mapped: Collection[Path]) -> None:
        busy = {build_id for pin in self._pins.values() for build_id in (pin.root, *pin.below)}
        for build_id in marked.builds & set(self._library.own_ids()) - busy:
            build = self._library.build(build_id)
            wanted = {MANIFEST, FLAT_MEMORY, *named_files(build.manifest)}
            if is_flattened(build.manifest) and build_id in marked.storages:
                wanted |= {MEMORY, HEADER}
            for path in build.directory.iterdir():
                if path.name not in wanted and path not in mapped:
                    path.unlink()

    def _find(self, build_id: UUID) -> Build | None:
        try:
            return self._library.build(build_id)
        except NotFound:
            return None
