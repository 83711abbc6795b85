"""Guests that are a private mapping of this very process, and the memory they should have."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from uuid import UUID

import numpy as np

from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.disk.blocks import Content
from wrenn_sandbox.disk.pages import PageSource
from wrenn_sandbox.vmm.driver import Ram

BASE = UUID(int=1)


def noise(pages: int, seed: int = 0) -> Content:
    """Pages of which none is like another, for writing."""
    return _noise(pages, seed).copy()


@lru_cache(maxsize=8)
def _noise(pages: int, seed: int) -> Content:
    return np.random.default_rng(seed).integers(0, 256, (pages, PAGE), dtype=np.uint8)


def base_file(folder: Path, pages: int, zeros: tuple[int, ...] = ()) -> Path:
    """A RAM file in which the pages ``zeros`` are zero and the others are noise."""
    content = noise(pages)
    content[list(zeros)] = 0
    path = folder / "base"
    path.write_bytes(content.tobytes())
    return path


def flat_source(base: Path) -> PageSource:
    return PageSource(Header.flat(base.stat().st_size, BASE), {BASE: base})


def open_files() -> set[str]:
    """What this process has open, by descriptor."""
    return {f"{fd.name} {fd.readlink()}" for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}


@contextmanager
def guest(base: Path) -> Iterator[tuple[Ram, Content]]:
    """A private mapping of ``base`` and its pages, for writing."""
    with base.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    pages = np.frombuffer(mapped, dtype=np.uint8).reshape(-1, PAGE)
    address, size = pages.ctypes.data, pages.nbytes
    try:
        yield Ram(os.getpid(), address, size), pages
    finally:
        del pages, mapped  # whoever still has a view of it keeps it
