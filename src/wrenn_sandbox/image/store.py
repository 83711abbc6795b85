"""Artefacts on disk: hashed by content, written aside, fsynced, renamed; and the record of what each was made from.

::

    images/
      .build.lock                one build at a time; a dead build's lock is free by itself
      .building/<name>-xxxx/     work in progress, swept by the next build
      cache/                     what a build may lose without harm: package lists, downloaded packages
      inputs/<name>/<key>.json   inputs key -> digest of what they made
      <kind>/<digest>/           see catalog.py
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from wrenn_sandbox.core.errors import Conflict

DIGEST_DIGITS = 32
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Made:
    """What one step made. ``facts`` are what other steps need to know of it, ``packages`` the Debian files it used."""

    digest: str
    size_bytes: int = 0
    facts: dict[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


class Store:
    """The images directory as a build sees it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def cache(self) -> Path:
        """A folder for what can be fetched again."""
        return self.root / "cache"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Own the store and sweep what a dead build left; raises Conflict (``image_build_running``)."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".build.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(
                    f"Another build works in {self.root}: wait for it to end.", slug="image_build_running"
                ) from error
            _remove(self.root / ".building")
            yield

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A fresh folder on the store's file system, gone when left unless it was published."""
        building = self.root / ".building"
        building.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=building))
        try:
            yield folder
        finally:
            _remove(folder)

    def publish(self, folder: Path, kind: str, digest: str) -> Path:
        """Make ``folder`` durable as ``<kind>/<digest>``; what is already there stays and ``folder`` is dropped."""
        target = self.root / kind / digest
        if target.exists():
            return target
        folder.chmod(0o755)
        sync_tree(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        _sync(target.parent)
        return target

    def recall(self, name: str, key: str) -> Made | None:
        """What these inputs made before; None when never, or when the record cannot be read."""
        try:
            data = json.loads(self._record(name, key).read_text())
            return Made(data["digest"], data["size_bytes"], data["facts"], tuple(data["packages"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def remember(self, name: str, key: str, made: Made) -> None:
        """Record what these inputs made, atomically."""
        record = self._record(name, key)
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary = record.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(made), indent=2) + "\n")
        _sync(temporary)
        temporary.replace(record)

    def _record(self, name: str, key: str) -> Path:
        return self.root / "inputs" / name / f"{key}.json"


def file_digest(path: Path) -> str:
    """Content hash of a file. Holes are skipped and count as what they are, so 8 GiB of sparse image cost its data."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "big"))
        for start, end in _extents(file.fileno(), size):
            file.seek(start)
            while start < end and (chunk := file.read(min(_CHUNK_BYTES, end - start))):
                if chunk.count(0) != len(chunk):  # zeros read the same whether stored or not
                    digest.update(start.to_bytes(8, "big"))
                    digest.update(chunk)
                start += len(chunk)
    return digest.hexdigest()[:DIGEST_DIGITS]


def tree_digest(root: Path) -> str:
    """Content hash of a folder: names, kinds, permission bits, link targets and contents; not owners and times."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(info.st_mode):
            entry = f"link {name} {path.readlink()}"
        elif stat.S_ISDIR(info.st_mode):
            entry = f"dir {name}"
        else:
            entry = f"file {name} {stat.S_IMODE(info.st_mode):o} {file_digest(path)}"
        digest.update(entry.encode() + b"\0")
    return digest.hexdigest()[:DIGEST_DIGITS]


def allocated_bytes(root: Path) -> int:
    """Disk space a file or folder really takes."""
    paths = [root, *root.rglob("*")] if root.is_dir() else [root]
    return sum(path.lstat().st_blocks * 512 for path in paths)


def sync_tree(root: Path) -> None:
    """Force to disk every file and folder below ``root``, and ``root``."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            _sync(path)
    _sync(root)


def _mount_points() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]  # proc(5)


def _remove(folder: Path) -> None:
    """Delete a folder, but never anything through a mount below it."""
    prefix = str(folder) + "/"
    if any(point.startswith(prefix) for point in _mount_points()):
        return  # its owner is still at work, or it takes an administrator to see what happened
    shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The data ranges of a file (lseek(2), SEEK_DATA), chunk-aligned outward: equal contents, equal ranges."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        start -= start % _CHUNK_BYTES
        end = min(size, -(-end // _CHUNK_BYTES) * _CHUNK_BYTES)
        yield max(start, position), end
        position = end
