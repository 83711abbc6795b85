"""Where builds lie: those of this agent's data directory, and the base templates of its images directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import UUID

import structlog

from wrenn_sandbox.core.errors import NotFound, WrennError
from wrenn_sandbox.disk.build import MANIFEST, MEMORY, Build, is_flattened, not_found, parse_id, read_manifest
from wrenn_sandbox.disk.gc import Needs, flat_storage
from wrenn_sandbox.image.catalog import Catalog

log = structlog.get_logger()


class Library:
    """Looks builds up. What it remembers of them it checks against the disk."""

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self.folder = folder
        self.catalog = catalog
        self._base_names: dict[UUID, str] = {}
        self._flat_storages: dict[UUID, UUID] = {}
        self._needs: dict[UUID, tuple[object, Needs]] = {}

    def build(self, build_id: UUID) -> Build:
        """The build or base template with this id; raises NotFound (``build_not_found``)."""
        directory = self.directory(build_id)
        return Build(directory, read_manifest(directory), self)

    def directory(self, build_id: UUID) -> Path:
        """Where it is; raises NotFound (``build_not_found``)."""
        own = self.folder / str(build_id)
        if own.is_dir():
            return own
        name = self._base_names.get(build_id)
        if name is None or self._id_of_base(self.catalog.bases / name) != build_id:
            self._base_names = {found: path.name for path, found in self._bases()}
            name = self._base_names.get(build_id)
        if name is None:
            raise not_found(str(build_id))
        return self.catalog.bases / name

    def storage(self, storage: UUID) -> tuple[Build, Path]:
        """The file of memory pages that headers call ``storage``, and its build; raises NotFound."""
        try:
            build = self.build(storage)
        except NotFound:
            build = self.build(self._owner(storage))
            return build, _existing(build.flat, storage)
        return build, _existing(build.directory / MEMORY if is_flattened(build.manifest) else build.memory, storage)

    def root(self, build: Build) -> Path:
        """The root file system image below its disk."""
        return self.catalog.rootfs(build.manifest.artefacts.rootfs)

    def own_ids(self) -> list[UUID]:
        """Ids of the builds of the data directory."""
        if not self.folder.is_dir():
            return []
        return [
            UUID(path.name) for path in self.folder.iterdir() if not path.name.startswith(".") and _is_id(path.name)
        ]

    def base_names(self) -> Mapping[UUID, str]:
        """The base templates, by id, with the names of their directories."""
        self._base_names = {found: path.name for path, found in self._bases()}
        return dict(self._base_names)

    def needs(self, build_id: UUID) -> Needs:
        """What a build needs of others; unknown when its files cannot be read."""
        try:
            stamp = _stamp(self.directory(build_id) / MANIFEST)
            if (known := self._needs.get(build_id)) is None or known[0] != stamp:
                known = self._needs[build_id] = (stamp, _needs_of(self.build(build_id)))
            return known[1]
        except (WrennError, OSError) as error:
            log.warning("what a build needs is unknown", build_id=str(build_id), error=str(error))
            return Needs(unknown=True)

    def forget(self, build_id: UUID) -> None:
        """It was removed."""
        self._needs.pop(build_id, None)

    def _owner(self, storage: UUID) -> UUID:
        if storage not in self._flat_storages:
            self._flat_storages = {flat_storage(build_id): build_id for build_id in self.own_ids()}
        if storage not in self._flat_storages:
            raise not_found(str(storage))
        return self._flat_storages[storage]

    def _bases(self) -> Iterator[tuple[Path, UUID]]:
        folder = self.catalog.bases
        for path in folder.iterdir() if folder.is_dir() else ():
            if not path.name.startswith(".") and (found := self._id_of_base(path)) is not None:
                yield path, found

    def _id_of_base(self, path: Path) -> UUID | None:
        try:
            return parse_id(read_manifest(path).build_id)
        except WrennError:
            return None  # of another version, or just being removed


class Needed(Mapping[UUID, Needs]):
    """The needs of some builds, each found out when it is first asked for."""

    def __init__(self, ids: frozenset[UUID], find: Callable[[UUID], Needs]) -> None:
        self._ids = ids
        self._find = find

    def __getitem__(self, build_id: UUID) -> Needs:
        if build_id not in self._ids:
            raise KeyError(build_id)
        return self._find(build_id)

    def __iter__(self) -> Iterator[UUID]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, build_id: object) -> bool:
        return build_id in self._ids


def _needs_of(build: Build) -> Needs:
    chain = build.manifest.disk_chain
    storages = build.header.builds() | {build.header.base_build_id}
    return Needs(storages, parse_id(chain[0]) if chain else None)


def _existing(path: Path | None, storage: UUID) -> Path:
    if path is None or not path.exists():
        raise not_found(str(storage))
    return path


def _is_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _stamp(path: Path) -> object:
    info = path.stat()
    return info.st_ino, info.st_mtime_ns, info.st_size
