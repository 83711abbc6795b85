from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from tests.unit.disk.guests import BASE, base_file, flat_source, noise, open_files
from wrenn_sandbox.core.errors import Bug, Unavailable
from wrenn_sandbox.core.extents import PAGE, Extent, Extents
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.disk.pages import PageSource

ABOVE = UUID(int=2)
PAGES = 40


def chain(folder: Path) -> tuple[PageSource, np.ndarray]:
    """A source over two files and zeros, and the memory that it is."""
    memory, changed = noise(PAGES), noise(5, seed=1)
    base = base_file(folder, PAGES)
    above = folder / "above"
    above.write_bytes(changed.tobytes())
    extents = Extents.of([Extent(3, 2), Extent(10, 4, zero=True), Extent(14, 3)])
    memory[3:5], memory[10:14], memory[14:17] = changed[:2], 0, changed[2:]
    header = Header.flat(PAGES * PAGE, BASE).extended(ABOVE, extents)
    return PageSource(header, {BASE: base, ABOVE: above}), memory


def test_pages_come_from_where_the_header_says(tmp_path: Path) -> None:
    source, memory = chain(tmp_path)
    with source:
        everything = np.arange(PAGES, dtype=np.int64)
        assert (source.gather(everything) == memory).all()
        some = np.array([39, 4, 3, 11, 16, 0, 4], dtype=np.int64)  # in any order, and twice
        room = np.full((9, PAGE), 7, dtype=np.uint8)
        found = source.gather(some, room)
        assert (found == memory[some]).all()
        assert np.shares_memory(found, room)
        assert (room[7:] == 7).all()
        assert source.gather(everything[:0]).shape == (0, PAGE)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (5, 4000), (3 * PAGE - 1, 2), (9 * PAGE, 8 * PAGE), (7, PAGES * PAGE - 7)]
)
def test_any_bytes_can_be_read(tmp_path: Path, offset: int, length: int) -> None:
    source, memory = chain(tmp_path)
    with source:
        assert source.read(offset, length) == memory.tobytes()[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 0), (PAGES * PAGE, 1), (PAGES * PAGE - 1, 2)])
def test_bytes_outside_are_a_bug(tmp_path: Path, offset: int, length: int) -> None:
    with chain(tmp_path)[0] as source, pytest.raises(Bug):
        source.read(offset, length)


def test_a_source_is_read_in_its_context_only_and_leaves_nothing_open(tmp_path: Path) -> None:
    source, _ = chain(tmp_path)
    before = open_files()
    with pytest.raises(Bug):
        source.read(0, 1)
    with source:
        source.read(0, 1)
    with pytest.raises(Bug):
        source.read(0, 1)
    assert open_files() == before


@pytest.mark.parametrize("build_id", [BASE, ABOVE])
@pytest.mark.parametrize("how", ["gone", "short", "unknown"])
def test_a_missing_or_short_file_is_a_broken_build(tmp_path: Path, build_id: UUID, how: str) -> None:
    source, _ = chain(tmp_path)
    files = dict(source.files)
    match how:
        case "gone":
            files[build_id].unlink()
        case "short":
            os.truncate(files[build_id], files[build_id].stat().st_size - 1)
        case _:
            del files[build_id]
    before = open_files()
    with pytest.raises(Unavailable) as refused, PageSource(source.header, files):
        pass
    assert refused.value.slug == "build_broken"
    assert open_files() == before


def test_an_unreadable_file_is_a_failing_disk(tmp_path: Path) -> None:
    base = base_file(tmp_path, 1)
    with pytest.raises(Unavailable) as refused, PageSource(flat_source(base).header, {BASE: base / "below"}):
        pass
    assert refused.value.slug == "disk_unavailable"


def test_what_lies_below_zeros_is_not_needed(tmp_path: Path) -> None:
    header = Header.flat(2 * PAGE, BASE).extended(ABOVE, Extents.of([Extent(0, 2, zero=True)]))
    with PageSource(header, {}) as source:
        assert source.read(0, 2 * PAGE) == bytes(2 * PAGE)


def test_many_short_runs_are_the_same_pages(tmp_path: Path) -> None:
    base = base_file(tmp_path, 3000)
    some = np.concatenate([np.arange(0, 2990, 3), np.arange(2990, 3000)])
    with flat_source(base) as source:
        assert (source.gather(some) == noise(3000)[some]).all()
        before = open_files()
        assert (source.gather(some[::-1]) == noise(3000)[some[::-1]]).all()
        assert open_files() == before
    assert str(base) not in Path("/proc/self/maps").read_text()


def test_a_file_that_breaks_meanwhile_is_seen_in_short_runs_too(tmp_path: Path) -> None:
    base = base_file(tmp_path, 300)
    with flat_source(base) as source:
        source.gather(np.arange(0, 300, 3, dtype=np.int64))
        os.truncate(base, 200 * PAGE)
        with pytest.raises(Unavailable) as refused:
            source.gather(np.arange(0, 300, 3, dtype=np.int64))
    assert refused.value.slug == "build_broken"
