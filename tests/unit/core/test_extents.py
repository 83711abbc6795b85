from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrenn_sandbox.core.errors import Bug
from wrenn_sandbox.core.extents import Extent, Extents, page_numbers, runs


def test_runs_join_neighbours_of_one_kind() -> None:
    pages = np.array([0, 1, 2, 5, 6, 7, 9], dtype=np.int64)
    zero = np.array([False, False, True, True, True, False, False])
    found = runs(pages, zero)
    assert list(found) == [
        Extent(0, 2), Extent(2, 1, zero=True), Extent(5, 2, zero=True), Extent(7, 1), Extent(9, 1),
    ]  # fmt: skip
    assert (len(found), found.pages, found.data_pages, found.end) == (5, 7, 4, 10)


def test_no_pages_are_no_runs() -> None:
    found = runs(np.empty(0, dtype=np.int64))
    assert (list(found), found.pages, found.data_pages, found.end) == ([], 0, 0, 0)
    assert page_numbers(found.first, found.count).tolist() == []


@given(st.dictionaries(st.integers(0, 300), st.booleans()))
def test_runs_are_the_pages_and_nothing_else(marked: dict[int, bool]) -> None:
    pages = np.array(sorted(marked), dtype=np.int64)
    found = runs(pages, np.array([marked[p] for p in sorted(marked)], dtype=np.bool_))
    assert {e.first + i: e.zero for e in found for i in range(e.count)} == marked
    assert page_numbers(found.first, found.count).tolist() == pages.tolist()
    rows = list(found)
    touching = [(a, b) for a, b in itertools.pairwise(rows) if a.first + a.count == b.first]
    assert all(a.zero != b.zero for a, b in touching)  # as long as they can be
    assert list(Extents.of(rows)) == rows


@pytest.mark.parametrize(
    "rows",
    [
        [Extent(0, 0)],
        [Extent(-1, 2)],
        [Extent(4, -1)],
        [Extent(0, 2), Extent(1, 2)],
        [Extent(5, 1), Extent(0, 1)],
        [Extent(3, 1), Extent(3, 1)],
    ],
)
def test_extents_that_make_no_sense_are_bugs(rows: list[Extent]) -> None:
    with pytest.raises(Bug):
        Extents.of(rows)
