from __future__ import annotations

from itertools import pairwise
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrenn_sandbox.core import layers
from wrenn_sandbox.core.errors import Bug, Unavailable
from wrenn_sandbox.core.extents import PAGE, Extent, Extents, runs
from wrenn_sandbox.core.layers import Entry, Table

BASE, A, B = UUID(int=1), UUID(int=2), UUID(int=3)
PAGES = 24

#: What a naive program would keep: of each page, the build and its page there; None for zeros.
Naive = list[tuple[UUID, int] | None]


def make(pages: int, rows: list[tuple[int, int, int]], builds: tuple[UUID, ...] = (BASE, A)) -> Table:
    first, build, storage = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    return layers.table(pages, first, build, storage, builds)


def flat(pages: int = PAGES) -> Table:
    return make(pages, [(0, 1, 0)], (BASE,))


def naive(table: Table) -> Naive:
    found: Naive = []
    for entry in table:
        assert entry.offset == len(found) * PAGE
        for i in range(entry.length // PAGE):
            found.append(None if entry.build_id is None else (entry.build_id, entry.storage_offset // PAGE + i))
    return found


def overlaid(below: Naive, build_id: UUID, marked: dict[int, bool]) -> Naive:
    pages, at = list(below), 0
    for page in sorted(marked):
        pages[page] = None if marked[page] else (build_id, at)
        at += not marked[page]
    return pages


def extents(marked: dict[int, bool]) -> Extents:
    pages = sorted(marked)
    return runs(np.array(pages, dtype=np.int64), np.array([marked[p] for p in pages], dtype=np.bool_))


def test_rows_join_only_where_the_file_goes_on() -> None:
    joined = make(6, [(0, 1, 0), (2, 1, 2), (3, 1, 7), (4, 0, 0), (5, 0, 99)])
    assert list(joined) == [
        Entry(0, 3 * PAGE, BASE, 0),
        Entry(3 * PAGE, PAGE, BASE, 7 * PAGE),  # the same build, elsewhere in its file
        Entry(4 * PAGE, 2 * PAGE, None, 0),
    ]
    assert joined.builds == (BASE,)  # the other one is needed no more


def test_overlay_changes_nothing_below() -> None:
    below = flat()
    columns = [c.copy() for c in (below.first, below.build, below.storage)]
    above = layers.overlay(below, A, extents({3: False, 4: True, 9: False}))
    assert all((a == b).all() for a, b in zip(columns, (below.first, below.build, below.storage), strict=True))
    assert below == flat() != above
    assert list(above)[1:4] == [
        Entry(3 * PAGE, PAGE, A, 0), Entry(4 * PAGE, PAGE, None, 0), Entry(5 * PAGE, 4 * PAGE, BASE, 5 * PAGE),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], [(0, 6, BASE, 0)]),
        ([Extent(0, 6)], [(0, 6, A, 0)]),  # base inside
        ([Extent(2, 2)], [(0, 2, BASE, 0), (2, 2, A, 0), (4, 2, BASE, 4)]),  # inside base
        ([Extent(0, 2)], [(0, 2, A, 0), (2, 4, BASE, 2)]),
        ([Extent(4, 2)], [(0, 4, BASE, 0), (4, 2, A, 0)]),
        ([Extent(1, 1), Extent(2, 1)], [(0, 1, BASE, 0), (1, 2, A, 0), (3, 3, BASE, 3)]),
    ],
)
def test_overlay_case_by_case(rows: list[Extent], expected: list[tuple[int, int, UUID, int]]) -> None:
    above = layers.overlay(flat(6), A, Extents.of(rows))
    assert list(above) == [Entry(first * PAGE, n * PAGE, build, at * PAGE) for first, n, build, at in expected]


MARKED = st.dictionaries(st.integers(0, PAGES - 1), st.booleans())


@given(st.lists(MARKED, max_size=5))
def test_overlays_are_what_a_page_by_page_program_gives(chain: list[dict[int, bool]]) -> None:
    table, expected = flat(), naive(flat())
    for i, marked in enumerate(chain):
        table = layers.overlay(table, UUID(int=100 + i), extents(marked))
        expected = overlaid(expected, UUID(int=100 + i), marked)
        assert naive(table) == expected
        assert set(table.builds) == {p[0] for p in expected if p}
        for one, two in pairwise(table):  # normal form
            goes_on = one.build_id is None or one.storage_offset + one.length == two.storage_offset
            assert not (one.build_id == two.build_id and goes_on)


@given(MARKED, MARKED, MARKED)
def test_the_difference_is_where_pages_come_from_elsewhere(
    both: dict[int, bool], mine: dict[int, bool], theirs: dict[int, bool]
) -> None:
    root = layers.overlay(flat(), A, extents(both))
    one, other = layers.overlay(root, B, extents(mine)), layers.overlay(root, UUID(int=4), extents(theirs))
    expected = {i: a for i, (a, b) in enumerate(zip(naive(one), naive(other), strict=True)) if a != b}
    found: dict[int, tuple[UUID, int] | None] = {}
    for e in layers.difference(one, other):
        for i in range(e.length // PAGE):
            page = None if e.build_id is None else (e.build_id, e.storage_offset // PAGE + i)
            assert found.setdefault(e.offset // PAGE + i, page) == page
    assert found == expected


@given(MARKED)
def test_resolving_finds_every_page(marked: dict[int, bool]) -> None:
    table = layers.overlay(flat(), A, extents(marked))
    build, storage = table.resolve(np.arange(PAGES, dtype=np.int64))
    found = [(table.builds[b - 1], s) if b else None for b, s in zip(build.tolist(), storage.tolist(), strict=True)]
    assert found == naive(table)
    assert [table[i] for i in range(len(table))] == list(table)


@pytest.mark.parametrize("page", [-1, PAGES])
def test_a_page_outside_is_a_bug(page: int) -> None:
    with pytest.raises(Bug):
        flat().resolve(np.array([page], dtype=np.int64))


def test_what_no_layer_can_be_is_a_bug() -> None:
    with pytest.raises(Bug):
        layers.overlay(flat(), A, Extents.of([Extent(PAGES - 1, 2)]))
    with pytest.raises(Bug):
        layers.overlay(flat(), BASE, Extents.of([Extent(0, 1)]))
    with pytest.raises(Bug):
        list(layers.difference(flat(), flat(PAGES - 1)))


@pytest.mark.parametrize(
    ("first", "count", "build", "storage", "builds"),
    [
        ([], [], [], [], (BASE,)),
        ([1], [3], [1], [0], (BASE,)),  # begins late
        ([0], [3], [1], [0], (BASE,)),  # ends early
        ([0], [5], [1], [0], (BASE,)),  # ends late
        ([0, 2], [1, 2], [1, 1], [0, 2], (BASE,)),  # gap
        ([0, 1], [2, 3], [1, 1], [0, 1], (BASE,)),  # overlap
        ([0, 0], [0, 4], [1, 1], [0, 0], (BASE,)),  # empty entry
        ([0], [4], [2], [0], (BASE,)),  # no such build
        ([0], [4], [-1], [0], (BASE,)),
        ([0], [4], [1], [-1], (BASE,)),
        ([0], [4], [1], [0], (BASE, BASE)),
        ([0], [4], [1], [0], (UUID(int=0),)),
    ],
)
def test_columns_from_outside_are_checked(
    first: list[int], count: list[int], build: list[int], storage: list[int], builds: tuple[UUID, ...]
) -> None:
    columns = [np.array(c, dtype=np.int64) for c in (first, count, build, storage)]
    with pytest.raises(Unavailable) as refused:
        layers.checked(4, columns, builds)
    assert refused.value.slug == "build_broken"
