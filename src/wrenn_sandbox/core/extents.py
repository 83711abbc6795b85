"""Runs of guest pages: which pages of a memory something is about, and which of them are zero.

A guest of 8 GiB has two million pages, so runs are kept as numpy columns; one at a time they are ``Extent``s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wrenn_sandbox.core.errors import Bug

#: Bytes of a page: the unit of everything about guest memory here, whatever pages host or guest use.
PAGE = 4096

Pages = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Extent:
    """``count`` pages from page number ``first`` on; ``zero`` when all their bytes are zero."""

    first: int
    count: int
    zero: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Extents:
    """Extents in the order of their pages, without overlaps. Iterating gives ``Extent``s."""

    first: Pages
    count: Pages
    zero: Flags

    def __post_init__(self) -> None:
        ends = self.first + self.count
        if (self.count <= 0).any() or (self.first < 0).any() or (ends[:-1] > self.first[1:]).any():
            raise Bug("Extents must be sorted, not empty, and must not overlap.")

    @classmethod
    def of(cls, extents: Iterable[Extent]) -> Extents:
        """The same as columns."""
        rows = list(extents)
        return cls(
            np.array([e.first for e in rows], dtype=np.int64),
            np.array([e.count for e in rows], dtype=np.int64),
            np.array([e.zero for e in rows], dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[Extent]:
        for first, count, zero in zip(self.first.tolist(), self.count.tolist(), self.zero.tolist(), strict=True):
            yield Extent(first, count, zero)

    @property
    def pages(self) -> int:
        """How many pages these are."""
        return int(self.count.sum())

    @property
    def data_pages(self) -> int:
        """How many of them have bytes, that is are not zero."""
        return int(self.count[~self.zero].sum())

    @property
    def end(self) -> int:
        """The page number after the last one; 0 when there is none."""
        return int(self.first[-1] + self.count[-1]) if len(self.first) else 0


def runs(pages: Pages, zero: Flags | None = None) -> Extents:
    """The longest runs of ``pages``, ascending page numbers; ``zero`` says of each whether it is zero."""
    if zero is None:
        zero = np.zeros(len(pages), dtype=np.bool_)
    if not len(pages):
        return Extents(pages.astype(np.int64), pages.astype(np.int64), zero)
    cuts = np.flatnonzero((np.diff(pages) != 1) | (zero[1:] != zero[:-1])) + 1
    starts = np.concatenate(([0], cuts))
    counts = np.diff(starts, append=len(pages))
    return Extents(pages[starts].astype(np.int64), counts.astype(np.int64), zero[starts])


def page_numbers(first: Pages, count: Pages) -> Pages:
    """Every page of the runs, in their order: the opposite of ``runs``."""
    before = np.cumsum(count) - count
    numbers: Pages = np.repeat(first - before, count) + np.arange(int(count.sum()), dtype=np.int64)
    return numbers
