from __future__ import annotations

import errno
import os
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.disk.guests import BASE, base_file, noise
from wrenn_sandbox.core.errors import Exhausted, Unavailable
from wrenn_sandbox.core.extents import PAGE, Extent, Extents, runs
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.disk import materialise as module
from wrenn_sandbox.disk.blocks import Content
from wrenn_sandbox.disk.materialise import materialise
from wrenn_sandbox.disk.pages import PageSource

ABOVE = UUID(int=2)


def layered(folder: Path, pages: int, extents: Extents) -> tuple[PageSource, Content]:
    """A build above a sparse base, and the memory it is."""
    memory = noise(pages)
    memory[pages // 4 : pages // 2] = 0
    base = folder / "base"
    with base.open("wb") as file:  # a hole, as boot leaves one for pages that were never touched
        file.write(memory[: pages // 4].tobytes())
        file.seek(pages // 2 * PAGE)
        file.write(memory[pages // 2 :].tobytes())
    packed = noise(max(extents.data_pages, 1), seed=1)
    (folder / "above").write_bytes(packed[: extents.data_pages].tobytes())
    at = 0
    for e in extents:
        memory[e.first : e.first + e.count] = 0 if e.zero else packed[at : at + e.count]
        at += 0 if e.zero else e.count
    header = Header.flat(pages * PAGE, BASE).extended(ABOVE, extents)
    return PageSource(header, {BASE: base, ABOVE: folder / "above"}), memory


def cloned(fd: int, origin: int) -> bool:
    """What FICLONE does, for a file system that has none."""
    os.pwrite(fd, os.pread(origin, os.fstat(origin).st_size, 0), 0)
    return True


def is_the_memory(target: Path, memory: Content) -> bool:
    return target.read_bytes() == memory.tobytes()


@pytest.mark.parametrize("sharing", [False, True])
@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.integers(0, 39), st.booleans()))
def test_a_flat_file_is_the_memory(
    tmp_path_factory: pytest.TempPathFactory, sharing: bool, marked: dict[int, bool]
) -> None:
    folder = tmp_path_factory.mktemp("flat")
    zero = np.array([marked[p] for p in sorted(marked)], dtype=np.bool_)
    source, memory = layered(folder, 40, runs(np.array(sorted(marked), dtype=np.int64), zero))
    with pytest.MonkeyPatch.context() as patch, source:
        patch.setattr(module, "clone", cloned if sharing else lambda fd, origin: False)
        materialise(source, folder / "flat")
    assert is_the_memory(folder / "flat", memory)
    assert sorted(p.name for p in folder.iterdir()) == ["above", "base", "flat"]


def test_zeros_and_holes_take_no_room(tmp_path: Path) -> None:
    """Far more than one read, so that holes are looked for; a page of zeros in the data takes no room either."""
    pages = 4096
    source, memory = layered(tmp_path, pages, Extents.of([Extent(0, 500, zero=True), Extent(600, 1)]))
    (tmp_path / "above").write_bytes(bytes(PAGE))
    memory[600] = 0
    with source:
        allocated = materialise(source, tmp_path / "flat")
    assert is_the_memory(tmp_path / "flat", memory)
    assert allocated == (tmp_path / "flat").stat().st_blocks * 512
    data = int(memory.any(axis=1).sum()) * PAGE
    assert data <= allocated < data * 1.05


def test_what_is_shared_is_overwritten_with_zeros_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page in the file of a build may be zero though its entry does not say so."""
    source, memory = layered(tmp_path, 40, Extents.of([Extent(1, 3)]))
    (tmp_path / "above").write_bytes(bytes(3 * PAGE))
    memory[1:4] = 0
    monkeypatch.setattr(module, "clone", cloned)
    with source:
        materialise(source, tmp_path / "flat")
    assert is_the_memory(tmp_path / "flat", memory)


def test_the_file_with_most_pages_in_place_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = layered(tmp_path, 40, Extents.of([Extent(0, 30)]))
    origins = []
    monkeypatch.setattr(module, "clone", lambda fd, origin: origins.append(Path(f"/proc/self/fd/{origin}").readlink()))
    with source:
        materialise(source, tmp_path / "flat")
    assert origins == [tmp_path / "above"]


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_things_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    source, memory = layered(tmp_path, 2000, Extents.of([Extent(5, 1)]))
    target = tmp_path / "flat"
    if there:
        target.write_bytes(b"the one before")
    calls, real = [], os.pwrite

    def full(fd: int, content: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, content, offset)

    monkeypatch.setattr(os, "pwrite", full)
    names = sorted(p.name for p in tmp_path.iterdir())
    with source:
        with pytest.raises(Exhausted) as refused:
            materialise(source, target)
        assert refused.value.slug == "host_disk_full"
        assert sorted(p.name for p in tmp_path.iterdir()) == names
        assert not there or target.read_bytes() == b"the one before"
        monkeypatch.undo()
        materialise(source, target)
    assert is_the_memory(target, memory)


def test_a_broken_build_leaves_nothing(tmp_path: Path) -> None:
    source, _ = layered(tmp_path, 40, Extents.of([Extent(5, 1)]))
    with source:
        os.truncate(tmp_path / "above", 100)
        with pytest.raises(Unavailable) as refused:
            materialise(source, tmp_path / "flat")
    assert refused.value.slug == "build_broken"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["above", "base"]


def test_what_an_aborted_attempt_left_does_not_matter(tmp_path: Path) -> None:
    source, memory = layered(tmp_path, 40, Extents.of([Extent(5, 1)]))
    (tmp_path / ".flat.new").write_bytes(noise(80, seed=9).tobytes())
    with source:
        materialise(source, tmp_path / "flat")
    assert is_the_memory(tmp_path / "flat", memory)


def test_a_flat_build_is_copied(tmp_path: Path) -> None:
    base = base_file(tmp_path, 30, zeros=(3,))
    with PageSource(Header.flat(30 * PAGE, BASE), {BASE: base}) as source:
        materialise(source, tmp_path / "flat")
    assert (tmp_path / "flat").read_bytes() == base.read_bytes()
