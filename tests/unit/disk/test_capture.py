from __future__ import annotations

import errno
import os
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.disk.guests import BASE, base_file, flat_source, guest, noise
from wrenn_sandbox.core.errors import Bug, Exhausted, Unavailable
from wrenn_sandbox.core.extents import PAGE, Extent
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.disk.capture import capture
from wrenn_sandbox.disk.pages import PageSource
from wrenn_sandbox.vmm.driver import Ram

ALL = slice(None)


def test_what_changed_is_captured_and_nothing_else(tmp_path: Path) -> None:
    base, target = base_file(tmp_path, 64, zeros=(30, 31)), tmp_path / "memory"
    with guest(base) as (ram, pages), flat_source(base) as parent:
        pages[3, 17] ^= 1
        pages[4] = noise(1, seed=1)[0]
        pages[9] = pages[9].copy()  # written, with what was there
        pages[20] = 0  # became zero
        pages[30] = 0  # was zero, was written, is zero
        pages[31, 4095] = 1
        captured = capture(ram, parent, target)
        expected = b"".join(pages[i].tobytes() for i in (3, 4, 31))
    assert list(captured.extents) == [Extent(3, 2), Extent(20, 1, zero=True), Extent(31, 1)]
    assert (captured.bytes_written, captured.pages_examined) == (3 * PAGE, 6)
    assert target.read_bytes() == expected


@pytest.mark.parametrize("changed", [[], [0], [511], list(range(512)), list(range(0, 512, 2)), list(range(100, 400))])
def test_captures_read_back_as_the_guest_was(tmp_path: Path, changed: list[int]) -> None:
    base, target = base_file(tmp_path, 512), tmp_path / "memory"
    with guest(base) as (ram, pages), flat_source(base) as parent:
        pages[changed, 5] += 1
        captured = capture(ram, parent, target)
        header = parent.header.extended(UUID(int=2), captured.extents)
        with PageSource(header, {BASE: base, UUID(int=2): target}) as source:
            assert (source.gather(np.arange(512, dtype=np.int64)) == pages).all()
    assert captured.bytes_written == target.stat().st_size == len(changed) * PAGE


def test_many_pieces_in_two_threads_stay_in_order(tmp_path: Path) -> None:
    """More than the threads' threshold; pieces of which all, some and none are kept."""
    count = 6000
    base, target = base_file(tmp_path, count, zeros=tuple(range(0, count, 7))), tmp_path / "memory"
    before = noise(count)
    before[::7] = 0
    with guest(base) as (ram, pages), flat_source(base) as parent:
        pages[:] = pages.copy()  # every page becomes private
        pages[1000:2500:3, 9] ^= 0xFF
        pages[4000:4700] = 0
        captured = capture(ram, parent, target)
        changed = np.flatnonzero((pages != before).any(axis=1))
        zero = ~pages[changed].any(axis=1)
        assert captured.pages_examined == count
        assert {e.first + i: e.zero for e in captured.extents for i in range(e.count)} == dict(
            zip(changed.tolist(), zero.tolist(), strict=True)
        )
        assert target.read_bytes() == pages[changed[~zero]].tobytes()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 49), st.sampled_from(["new", "zero", "same", "base"])), max_size=4))
def test_a_chain_of_captures_is_the_guest_at_each_moment(
    tmp_path_factory: pytest.TempPathFactory, generations: list[dict[int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    base = base_file(folder, 50, zeros=(7, 8, 40))
    original, everything = np.fromfile(base, dtype=np.uint8).reshape(-1, PAGE), np.arange(50, dtype=np.int64)
    files, header = {BASE: base}, Header.flat(50 * PAGE, BASE)
    with guest(base) as (ram, pages):
        for i, changes in enumerate(generations):
            before = pages.copy()
            for page, how in changes.items():
                pages[page] = {
                    "new": noise(1, seed=1000 * i + page + 1)[0], "zero": np.uint8(0), "same": pages[page].copy(),
                    "base": original[page],
                }[how]  # fmt: skip
            build_id = UUID(int=2 + i)
            files[build_id] = folder / f"memory-{i}"
            with PageSource(header, files) as parent:
                captured = capture(ram, parent, files[build_id])
            assert captured.extents.pages == (pages != before).any(axis=1).sum()
            header = header.extended(build_id, captured.extents)
            with PageSource(header, files) as source:
                assert (source.gather(everything) == pages).all()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 3, 6])
def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: int) -> None:
    base, target = base_file(tmp_path, 4000), tmp_path / "memory"
    real, calls = os.pwrite, []

    def full(fd: int, content: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        return real(fd, content, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with guest(base) as (ram, pages), flat_source(base) as parent:
        pages[ALL, 0] ^= 1
        with pytest.raises(Exhausted) as refused:
            capture(ram, parent, target)
        assert refused.value.slug == "host_disk_full"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]
        monkeypatch.undo()
        assert capture(ram, parent, target).extents.pages == 4000  # there is room again


@pytest.mark.parametrize("pages_changed", [1, 3000])
def test_a_parent_that_breaks_meanwhile_leaves_no_file(tmp_path: Path, pages_changed: int) -> None:
    base, target = base_file(tmp_path, 3000), tmp_path / "memory"
    with guest(base) as (ram, pages), flat_source(base) as parent:
        pages[ALL, 0] ^= 1
        header = parent.header
        other = tmp_path / "other"
        other.write_bytes(base.read_bytes())
        with PageSource(header, {BASE: other}) as broken:
            os.truncate(other, (3000 - pages_changed) * PAGE)
            with pytest.raises(Unavailable) as refused:
                capture(ram, broken, target)
    assert refused.value.slug == "build_broken"
    assert not target.exists()


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    base, target = base_file(tmp_path, 4), tmp_path / "memory"
    target.write_bytes(b"precious")
    with guest(base) as (ram, _), flat_source(base) as parent, pytest.raises(Unavailable):
        capture(ram, parent, target)
    assert target.read_bytes() == b"precious"


def test_a_parent_of_another_size_is_a_bug(tmp_path: Path) -> None:
    base = base_file(tmp_path, 4)
    with guest(base) as (ram, _), flat_source(base) as parent, pytest.raises(Bug):
        capture(Ram(ram.pid, ram.address, 3 * PAGE), parent, tmp_path / "memory")
    assert not (tmp_path / "memory").exists()
