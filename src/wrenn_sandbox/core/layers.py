"""Which build holds each page of a guest's memory: the layers of a chain of builds, seen from above.

A table has one row for each run of pages that lies in one piece in one file. Row ``i`` says: the pages from
``first[i]`` up to ``first[i + 1]`` are those from page ``storage[i]`` on in the file of build ``build[i]``; 0 means
no file but zeros, and n > 0 means ``builds[n - 1]``. Rows are kept as numpy columns: a fragmented guest has 100,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from wrenn_sandbox.core.errors import Bug, Unavailable
from wrenn_sandbox.core.extents import PAGE, Extents, Pages

ZEROS = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """``length`` bytes of memory at ``offset``: in the file of ``build_id`` at ``storage_offset``, or zeros (None)."""

    offset: int
    length: int
    build_id: UUID | None
    storage_offset: int


def broken(why: str) -> Unavailable:
    """The error of a build whose files do not hold together."""
    return Unavailable(
        f"The build is broken: {why}. Resume from another snapshot, or restore the build's files from a backup.",
        slug="build_broken",
    )


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """``pages`` pages, all of them covered, in normal form. Made by ``table`` and ``overlay``."""

    pages: int
    first: Pages
    build: Pages
    storage: Pages
    builds: tuple[UUID, ...]

    @property
    def count(self) -> Pages:
        """The number of pages of each row."""
        return np.diff(self.first, append=self.pages)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, row: int) -> Entry:
        first, end = int(self.first[row]), int(self.first[row + 1]) if row + 1 < len(self.first) else self.pages
        return self._entry(first, end - first, int(self.build[row]), int(self.storage[row]))

    def __iter__(self) -> Iterator[Entry]:
        return self.rows(np.arange(len(self.first), dtype=np.int64))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.pages == other.pages and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def rows(self, numbers: Pages) -> Iterator[Entry]:
        """The entries with these row numbers."""
        columns = (self.first, self.count, self.build, self.storage)
        for first, count, build, storage in zip(*(c[numbers].tolist() for c in columns), strict=True):
            yield self._entry(first, count, build, storage)

    def row_of(self, pages: Pages) -> Pages:
        """The row of each page, by bisection; raises Bug for a page outside."""
        if len(pages) and (int(pages.min()) < 0 or int(pages.max()) >= self.pages):
            raise Bug(f"A page outside the memory's {self.pages} pages was asked for.")
        return np.searchsorted(self.first, pages, side="right").astype(np.int64) - 1

    def resolve(self, pages: Pages) -> tuple[Pages, Pages]:
        """Of each page, the number of its build (0: zeros) and its page in that build's file."""
        row = self.row_of(pages)
        build = self.build[row]
        storage = np.where(build == ZEROS, 0, self.storage[row] + pages - self.first[row])
        return build, storage

    def _entry(self, first: int, count: int, build: int, storage: int) -> Entry:
        return Entry(first * PAGE, count * PAGE, None if build == ZEROS else self.builds[build - 1], storage * PAGE)


def table(pages: int, first: Pages, build: Pages, storage: Pages, builds: Iterable[UUID]) -> Table:
    """Normal form: neighbours that lie one after the other in one file become one row, unused builds are dropped."""
    counts = np.diff(first, append=pages)
    zeros = build == ZEROS
    storage = np.where(zeros, 0, storage)
    joined = (build[1:] == build[:-1]) & (zeros[1:] | (storage[:-1] + counts[:-1] == storage[1:]))
    keep = np.concatenate(([True], ~joined))
    build = build[keep]
    used, renumbered = np.unique(np.concatenate(([ZEROS], build)), return_inverse=True)
    named = tuple(builds)
    return Table(
        pages,
        first[keep],
        renumbered[1:].astype(np.int64),
        storage[keep],
        tuple(named[i - 1] for i in used[1:].tolist()),
    )


def checked(pages: int, columns: Sequence[Pages], builds: tuple[UUID, ...]) -> Table:
    """A table of columns (first, count, build, storage) from outside; raises Unavailable (``build_broken``)."""
    first, count, build, storage = columns
    if not len(first) or int(first[0]) != 0 or int(first[-1]) + int(count[-1]) != pages:
        raise broken("its header does not cover the memory")
    if (count <= 0).any() or (first[:-1] + count[:-1] != first[1:]).any():
        raise broken("the entries of its header overlap or leave gaps")
    if (build < 0).any() or (build > len(builds)).any() or (storage < 0).any():
        raise broken("an entry of its header names a place that cannot be")
    if len(set(builds)) != len(builds) or UUID(int=0) in builds:
        raise broken("the builds in its header are not distinct")
    return table(pages, first, build, storage, builds)


def overlay(below: Table, build_id: UUID, extents: Extents) -> Table:
    """``below`` with the pages of ``extents`` from ``build_id``, whose file holds those not zero, one after another."""
    if extents.end > below.pages:
        raise Bug(f"Page {extents.end - 1} is outside the memory's {below.pages} pages.")
    if build_id in below.builds:
        raise Bug(f"Build {build_id} is below itself.")
    starts = _cuts(below.pages, below.first, extents.first, extents.first + extents.count)
    build, storage = below.resolve(starts)
    if len(extents):
        data = np.where(extents.zero, 0, extents.count)
        packed = np.cumsum(data) - data
        row = np.searchsorted(extents.first, starts, side="right") - 1
        within = (row >= 0) & (starts < (extents.first + extents.count)[row])
        build = np.where(within, np.where(extents.zero[row], ZEROS, len(below.builds) + 1), build)
        storage = np.where(within, packed[row] + starts - extents.first[row], storage)
    return table(below.pages, starts, build, storage, (*below.builds, build_id))


def difference(one: Table, other: Table) -> Iterator[Entry]:
    """The entries of ``one`` whose pages ``other`` has from elsewhere; of a row that differs in part, that part."""
    if one.pages != other.pages:
        raise Bug(f"A memory of {one.pages} pages was compared with one of {other.pages}.")
    starts = _cuts(one.pages, one.first, other.first)
    builds = tuple(dict.fromkeys((*one.builds, *other.builds)))
    number = {build_id: i + 1 for i, build_id in enumerate(builds)}
    theirs = np.array([ZEROS, *(number[b] for b in other.builds)], dtype=np.int64)
    build, storage = one.resolve(starts)  # whose numbers are those of the joint list
    build_other, storage_other = other.resolve(starts)
    same = (build == theirs[build_other]) & (storage == storage_other)
    # A row of its own for what is the same, which no entry of ``one`` can join: it is left out below.
    parts = table(one.pages, starts, np.where(same, len(builds) + 1, build), storage, (*builds, UUID(int=0)))
    return (e for e in parts if e.build_id != UUID(int=0))


def _cuts(pages: int, *starts: Pages) -> Pages:
    """Each page below ``pages`` that a run starts at, once."""
    cuts = np.sort(np.concatenate(starts), kind="stable")  # which merges what is sorted in pieces
    keep = cuts < pages
    keep[1:] &= cuts[1:] != cuts[:-1]
    return cuts[keep]
