from __future__ import annotations

import random
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from wrenn_sandbox.core.extents import PAGE, Extent, Extents
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.disk.equality import data_pages, data_ranges, equal
from wrenn_sandbox.disk.pages import PageSource

PAGES = 64
BELOW, ABOVE = UUID(int=1), UUID(int=2)


def _sparse(path: Path, pages: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(PAGES * PAGE)
        for number, data in pages.items():
            file.seek(number * PAGE)
            file.write(data)
    return path


@pytest.fixture
def source(tmp_path: Path) -> PageSource:
    """Pages 3, 8 and 9 below, above them 9 anew and 3 as zeros."""
    rnd = random.Random(1)
    below = _sparse(tmp_path / "below", {n: rnd.randbytes(PAGE) for n in (3, 8, 9)})
    (tmp_path / "above").write_bytes(rnd.randbytes(PAGE))
    header = Header.flat(PAGES * PAGE, BELOW).extended(ABOVE, Extents.of([Extent(3, 1, zero=True), Extent(9, 1)]))
    return PageSource(header, {BELOW: below, ABOVE: tmp_path / "above"})


@pytest.fixture
def right(source: PageSource, tmp_path: Path) -> dict[int, bytes]:
    below = (tmp_path / "below").read_bytes()
    return {8: below[8 * PAGE : 9 * PAGE], 9: (tmp_path / "above").read_bytes()}


def test_the_same_memory_is_equal_wherever_its_holes_are(
    source: PageSource, right: dict[int, bytes], tmp_path: Path
) -> None:
    with source:
        assert equal(source, _sparse(tmp_path / "flat", right))
        assert equal(source, _sparse(tmp_path / "flat", {n: bytes(PAGE) for n in range(PAGES)} | right))


@pytest.mark.parametrize("number", [0, 3, 8, 9, PAGES - 1])
def test_one_bit_anywhere_is_seen(source: PageSource, right: dict[int, bytes], tmp_path: Path, number: int) -> None:
    wrong = bytearray(right.get(number, bytes(PAGE)))
    wrong[-1] ^= 1
    with source:
        assert not equal(source, _sparse(tmp_path / "flat", right | {number: bytes(wrong)}))


@pytest.mark.parametrize("number", [8, 9])
def test_a_page_that_is_missing_is_seen(
    source: PageSource, right: dict[int, bytes], tmp_path: Path, number: int
) -> None:
    del right[number]
    with source:
        assert not equal(source, _sparse(tmp_path / "flat", right))


def test_another_size_is_not_equal(source: PageSource, right: dict[int, bytes], tmp_path: Path) -> None:
    flat = _sparse(tmp_path / "flat", right)
    with flat.open("ab") as file:
        file.write(bytes(PAGE))
    with source:
        assert not equal(source, flat)


def test_data_is_found_in_whole_pages(tmp_path: Path) -> None:
    path = _sparse(tmp_path / "file", {2: b"x" * PAGE, 3: b"x" * 10, 40: b"y"})
    with path.open("rb") as file:
        assert list(data_ranges(file.fileno(), PAGES * PAGE)) == [(2 * PAGE, 4 * PAGE), (40 * PAGE, 41 * PAGE)]
        assert np.flatnonzero(data_pages(file.fileno())).tolist() == [2, 3, 40]


def test_a_file_without_holes_and_one_of_nothing_else(tmp_path: Path) -> None:
    for pages, found in ((dict.fromkeys(range(PAGES), b"x" * PAGE), PAGES), ({}, 0)):
        with _sparse(tmp_path / "file", pages).open("rb") as file:
            assert data_pages(file.fileno()).sum() == found
