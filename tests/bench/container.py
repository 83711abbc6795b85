"""What users without KVM would pick instead: a namespace container on the same root file system, by bubblewrap."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.figures import Series


@contextmanager
def mounted(image: Path, where: Path) -> Iterator[Path]:
    """The root file system of the sandboxes, read-only."""
    where.mkdir()
    subprocess.run(["mount", "-o", "loop,ro,noload", str(image), str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)
        where.rmdir()


def start_and_run(root: Path, command: tuple[str, ...], times: int) -> Series:
    """Milliseconds from nothing to the end of ``command`` in a new container, each time."""
    series = Series(f"bwrap {' '.join(command)}")
    for _ in range(times):
        started = time.monotonic()
        subprocess.run(
            [
                *("bwrap", "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
                *("--tmpfs", "/run", "--unshare-all", "--die-with-parent", *command),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        series.add((time.monotonic() - started) * 1000)
    return series
