"""A build in the making: a directory aside, and its way to disk before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from wrenn_sandbox.core.header import Header
from wrenn_sandbox.disk import durability
from wrenn_sandbox.disk.build import DISK, HEADER, MEMORY, STATE

_READ_ONLY = 0o444


@dataclass(frozen=True, slots=True)
class Draft:
    """Where the files of the build ``build_id`` to be are put. It has no file yet when it is made."""

    build_id: UUID
    directory: Path

    @property
    def state(self) -> Path:
        """For the device state."""
        return self.directory / STATE

    @property
    def memory(self) -> Path:
        """For the captured pages."""
        return self.directory / MEMORY

    @property
    def disk(self) -> Path:
        """For the overlay."""
        return self.directory / DISK

    def write_header(self, header: Header) -> None:
        """Say where the pages are."""
        with durability.disk_errors("a memory header"):
            (self.directory / HEADER).write_bytes(header.to_bytes())

    def take_disk(self, overlay: Path) -> None:
        """Make ``overlay``, on the same file system, the disk of the build; it stays where it is, too (link(2))."""
        with durability.disk_errors("the disk of a build"):
            os.link(overlay, self.disk)


def settle(files: Sequence[Path]) -> Mapping[str, str]:
    """Force ``files`` to disk, for no VMM to write any more, and return the SHA-256 of each by its name.

    The disk writes while the processor hashes.
    """
    for path in files:
        os.chown(path, os.geteuid(), os.getegid())
        path.chmod(_READ_ONLY)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fsync") as pool:
        synced = [pool.submit(durability.sync, path) for path in files]
        hashes = {path.name: durability.sha256(path) for path in files}
        for each in synced:
            each.result()
    return hashes
