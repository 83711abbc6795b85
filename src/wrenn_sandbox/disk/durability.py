"""Files that are whole or not there: written aside, forced to disk, renamed; and the errors of a disk in our words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wrenn_sandbox.core.errors import Exhausted, Unavailable, WrennError

#: Ends of the names under which something is made, rewritten or removed; without its owner each of them is rubbish.
NEW, WORK, OLD = ".new", ".work", ".old"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CHUNK_BYTES = 1 << 20


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the body into Exhausted (``host_disk_full``) or Unavailable (``disk_unavailable``)."""
    try:
        yield
    except OSError as error:
        raise translated(error, what) from error


def translated(error: OSError, what: str) -> WrennError:
    """The error for the user when work on ``what``, a noun phrase, failed."""
    if is_full(error):
        return disk_full()
    return Unavailable(
        f"This host's disk fails with {what}: {error.strerror}. Look at the disk, then try again.",
        slug="disk_unavailable",
    )


def is_full(error: BaseException) -> bool:
    """Whether it is the error of somebody who wanted room on a disk."""
    return isinstance(error, OSError) and error.errno in _FULL


def disk_full() -> Exhausted:
    """There is no room on this host's disk."""
    return Exhausted("This host's disk is full: free some room on it, or use another host.", slug="host_disk_full")


def aside(path: Path, end: str) -> Path:
    """The name beside ``path`` for its ``end`` (NEW, WORK or OLD)."""
    return path.with_name(f".{path.name}{end}")


def sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes) -> None:
    """Put ``content`` into the file ``path``, old or new, so that a crash leaves the old or the new one, whole."""
    new = aside(path, NEW)
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove_asides(folder: Path, ends: tuple[str, ...], keep: frozenset[str] = frozenset()) -> int:
    """Remove what is aside in ``folder`` but for the names in ``keep``; returns how many those were."""
    found = [path for path in folder.glob(".*") if path.name.endswith(ends) and path.name not in keep]
    for path in found:
        remove(path)
    return len(found)


def remove(path: Path) -> None:
    """Remove a file or a folder with its files; what cannot be removed now is left to the next sweep."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def allocated_bytes(folder: Path) -> int:
    """Disk space that the files of a folder take: what is allocated, not their length. Files may go meanwhile."""
    blocks = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            blocks += path.lstat().st_blocks
    return blocks * 512
