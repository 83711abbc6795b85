"""Captures of a real process's memory, restored into other processes; on full disks and from dying processes."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from tests.leaks import Footprint
from tests.mapping import mapped
from wrenn_sandbox.core import header as headers
from wrenn_sandbox.core.errors import Exhausted, Unavailable
from wrenn_sandbox.core.extents import PAGE, Pages
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.disk.blocks import Content
from wrenn_sandbox.disk.capture import capture
from wrenn_sandbox.disk.materialise import materialise
from wrenn_sandbox.disk.pages import PageSource
from wrenn_sandbox.vmm import ram as memory
from wrenn_sandbox.vmm.driver import Patch

pytestmark = pytest.mark.platform
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PAGES = 4096
BASE = UUID(int=1)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = Footprint.take()
    yield
    assert Footprint.take().left_behind(before) == {}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    with path.open("wb") as file:
        file.write(random.Random(0).randbytes(PAGES // 2 * PAGE))
        file.truncate(PAGES * PAGE)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_ten_generations_each_in_a_process_of_its_own(base: Path, tmp_path: Path) -> None:
    """Restore as the drivers do: map the base's file or a flat one, patch what differs; then go on changing."""
    rng, files, header = random.Random(4), {BASE: base}, Header.flat(PAGES * PAGE, BASE)
    digest, flat, below = "", base, header
    for generation in range(1, 11):
        build_id, target = UUID(int=generation << 64), tmp_path / f"memory-{generation}"
        with mapped(flat) as guest:
            ram = memory.locate(guest.pid, flat)
            memory.apply(
                ram,
                [
                    Patch(e.offset, e.length, None if e.build_id is None else files[e.build_id], e.storage_offset)
                    for e in header.changed_since(below)
                ],
            )
            assert digest in {"", guest.digest()}
            for byte in (0, 0, generation, 99):  # zeros, new content, and content that comes again
                first = rng.randrange(PAGES - 600)
                guest.fill(range(first, first + rng.randrange(600), rng.choice([1, 1, 3])), byte)
            digest = guest.digest()
            with PageSource(header, files) as parent:
                captured = capture(ram, parent, target)
            assert guest.digest() == digest  # which only read
        files[build_id] = target
        header = headers.parse(header.extended(build_id, captured.extents).to_bytes())
        assert target.stat().st_size == captured.bytes_written == captured.extents.data_pages * PAGE
        if generation == 5:
            flat, below = tmp_path / "flat", header
            with PageSource(header, files) as source:
                materialise(source, flat)
    with PageSource(header, files) as source:
        materialise(source, tmp_path / "last")
    with mapped(tmp_path / "last") as guest:
        assert guest.digest() == digest


def test_a_little_new_on_much_old_writes_the_little(base: Path, tmp_path: Path) -> None:
    """A machine that runs on after a snapshot keeps its private pages, which the build below has by then."""
    header, files = Header.flat(PAGES * PAGE, BASE), {BASE: base}
    with mapped(base) as guest:
        ram = memory.locate(guest.pid, base)
        guest.fill(range(1000, 3000), 5)
        with PageSource(header, files) as parent:
            first = capture(ram, parent, tmp_path / "first")
        header, files = header.extended(UUID(int=2), first.extents), {**files, UUID(int=2): tmp_path / "first"}
        guest.fill(range(2990, 3010), 6)
        with PageSource(header, files) as parent:
            second = capture(ram, parent, tmp_path / "second")
    assert (first.pages_examined, first.bytes_written) == (2000, 2000 * PAGE)
    assert (second.pages_examined, second.bytes_written) == (2010, 20 * PAGE)


@needs_root
def test_a_full_disk_leaves_no_file_and_the_process_as_it_was(base: Path, small: Path) -> None:
    with mapped(base) as guest, PageSource(Header.flat(PAGES * PAGE, BASE), {BASE: base}) as parent:
        ram = memory.locate(guest.pid, base)
        for changed in (300, 4000):  # in this thread, and in two
            guest.fill(range(changed), 1)
            digest = guest.digest()
            with pytest.raises(Exhausted) as refused:
                capture(ram, parent, small / "memory")
            assert refused.value.slug == "host_disk_full"
            assert list(small.iterdir()) == []
            assert guest.digest() == digest
        with pytest.raises(Exhausted):
            materialise(parent, small / "flat")
        assert list(small.iterdir()) == []


@pytest.mark.parametrize("changed", [600, 4000])
def test_a_process_that_dies_in_the_middle_leaves_no_file(base: Path, tmp_path: Path, changed: int) -> None:
    with mapped(base) as guest:
        ram = memory.locate(guest.pid, base)
        guest.fill(range(changed), 1)

        class Deadly(PageSource):
            def gather(self, pages: Pages, out: Content | None = None) -> Content:
                guest.kill()
                return super().gather(pages, out)

        with (
            Deadly(Header.flat(PAGES * PAGE, BASE), {BASE: base}) as parent,
            pytest.raises(Unavailable) as refused,
        ):
            capture(ram, parent, tmp_path / "memory")
    assert refused.value.slug == "vmm_gone"
    assert not (tmp_path / "memory").exists()


def test_zeros_over_zeros_are_nothing(base: Path, tmp_path: Path) -> None:
    with mapped(base) as guest, PageSource(Header.flat(PAGES * PAGE, BASE), {BASE: base}) as parent:
        ram = memory.locate(guest.pid, base)
        guest.fill(range(PAGES // 2 - 3, PAGES // 2 + 50), 0)  # three had content, fifty lie in the file's hole
        captured = capture(ram, parent, tmp_path / "memory")
    assert (captured.pages_examined, captured.bytes_written) == (53, 0)
    assert [(e.first, e.count, e.zero) for e in captured.extents] == [(PAGES // 2 - 3, 3, True)]
    assert np.array_equal(np.fromfile(tmp_path / "memory", dtype=np.uint8), np.empty(0))
