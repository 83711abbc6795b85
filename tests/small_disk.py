"""A disk that has no room but what a test gives it: a tmpfs whose size is changed while it is in use."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PLENTY = 1 << 16


@dataclass(frozen=True)
class SmallDisk:
    """``path`` is where it is mounted."""

    path: Path

    def leave(self, *, pages: int = _PLENTY, files: int = _PLENTY) -> None:
        """Have room for so many pages of content and so many files more."""
        while True:
            now = os.statvfs(self.path)
            size, inodes = (now.f_blocks - now.f_bfree + pages) * now.f_frsize, now.f_files - now.f_ffree + files
            command = ("mount", "-o", f"remount,size={size},nr_inodes={inodes}", str(self.path))
            if subprocess.run(command, check=False, capture_output=True).returncode == 0:
                return
            # Somebody wrote more in between: what is in use cannot be taken away.


@contextmanager
def small_disk(path: Path) -> Iterator[SmallDisk]:
    """Mounted on the new folder ``path``, with plenty of room at first; needs root."""
    path.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={_PLENTY * 4}k,nr_inodes={_PLENTY},mode=711", "small", str(path))
    try:
        yield SmallDisk(path)
    finally:
        _run("umount", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
