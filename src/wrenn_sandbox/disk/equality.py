"""Whether a flat RAM file is a build's memory, byte for byte. What is a hole on both sides is not read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wrenn_sandbox.core.extents import PAGE, Flags, Pages
from wrenn_sandbox.core.layers import ZEROS
from wrenn_sandbox.disk import blocks
from wrenn_sandbox.disk.pages import PageSource

_CHUNK_PAGES = 1024


def equal(source: PageSource, flat: Path) -> bool:
    """Whether ``flat`` reads as ``source`` does, whose context is open. Raises OSError and what ``source`` raises."""
    ours, theirs = blocks.empty(_CHUNK_PAGES), blocks.empty(_CHUNK_PAGES)
    with flat.open("rb") as file:
        descriptor = file.fileno()
        if os.fstat(descriptor).st_size != source.header.size:
            return False
        pages = np.flatnonzero(_data_of(source) | data_pages(descriptor)).astype(np.int64)
        for at in range(0, len(pages), _CHUNK_PAGES):
            piece = pages[at : at + _CHUNK_PAGES]
            source.gather(piece, ours)
            blocks.read(descriptor, piece, theirs)
            if not np.array_equal(ours[: len(piece)], theirs[: len(piece)]):
                return False
    return True


def _data_of(source: PageSource) -> Flags:
    """Of each page of a memory, whether it may have other bytes than zeros."""
    table = source.header.entries
    pages: Pages = np.arange(table.pages, dtype=np.int64)
    build, storage = table.resolve(pages)
    found = np.zeros(table.pages, dtype=np.bool_)
    for number, name in enumerate(table.builds, ZEROS + 1):
        rows = np.flatnonzero(build == number)
        found[rows] = data_pages(source.descriptor(name))[storage[rows]]
    return found


def data_pages(descriptor: int) -> Flags:
    """Of each page of a file, whether any of it is not a hole."""
    size = os.fstat(descriptor).st_size
    found = np.zeros(-(-size // PAGE), dtype=np.bool_)
    for start, end in data_ranges(descriptor, size):
        found[start // PAGE : -(-end // PAGE)] = True
    return found


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each part of a file that is not a hole (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # only a hole is left
                raise
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
