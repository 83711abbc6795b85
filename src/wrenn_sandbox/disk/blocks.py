"""Many 4 KiB blocks of one file at once: neighbours in one read, straight to where they are wanted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wrenn_sandbox.core.extents import PAGE, Pages
from wrenn_sandbox.core.layers import broken

#: Bytes of pages, of shape (n, 4096), one after another.
Content = NDArray[np.uint8]


def empty(count: int) -> Content:
    """Room for ``count`` blocks."""
    return np.empty((count, PAGE), dtype=np.uint8)


def read(fd: int, blocks: Pages, out: Content, rows: Pages | None = None) -> None:
    """Read the file's blocks with these numbers into rows of ``out``: into the first ones, or into ``rows``.

    Raises OSError, or Unavailable (``build_broken``) where the file ends too early.
    """
    for into, offset in _pieces(blocks, out, rows):
        read_whole(fd, into, offset)


def write(fd: int, blocks: Pages, content: Content, rows: Pages | None = None) -> None:
    """Write rows of ``content``, the first ones or ``rows``, over the file's blocks with these numbers. OSError."""
    for piece, offset in _pieces(blocks, content, rows):
        write_whole(fd, piece, offset)


def read_whole(fd: int, into: memoryview, offset: int) -> None:
    """Fill ``into`` from ``offset`` on; raises OSError, or Unavailable (``build_broken``) where the file ends."""
    while len(into):
        done = os.preadv(fd, [into], offset)
        if not done:
            raise broken(f"{Path(f'/proc/self/fd/{fd}').readlink().name} ends before byte {offset + len(into)}")
        into, offset = into[done:], offset + done


def write_whole(fd: int, content: memoryview, offset: int) -> None:
    """Write all of ``content`` at ``offset``; raises OSError."""
    while len(content):
        done = os.pwrite(fd, content, offset)
        content, offset = content[done:], offset + done


def as_bytes(content: Content) -> memoryview:
    """The same memory, byte by byte."""
    return content.reshape(-1).data


def _pieces(blocks: Pages, content: Content, rows: Pages | None) -> Iterator[tuple[memoryview, int]]:
    """Memory and offset in the file of each run in which rows and blocks both count up by one."""
    count = len(blocks)
    if not count:
        return
    rows = np.arange(count, dtype=np.int64) if rows is None else rows
    starts = np.flatnonzero((np.diff(blocks, prepend=-2) != 1) | (np.diff(rows, prepend=-2) != 1))
    ends = np.append(starts[1:], count)
    view = as_bytes(content)
    for block, row, length in zip(
        (blocks[starts] * PAGE).tolist(), (rows[starts] * PAGE).tolist(), ((ends - starts) * PAGE).tolist(), strict=True
    ):
        yield view[row : row + length], block
