from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.unit.disk.guests import base_file, guest, noise, open_files
from wrenn_sandbox.core.errors import Bug, Unavailable
from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.disk import blocks
from wrenn_sandbox.vmm import ram as module
from wrenn_sandbox.vmm.driver import Patch, Ram

NO_PID = 1 << 22  # pid_max is never larger, so nobody has it


def numbers(*pages: int) -> np.ndarray:
    return np.array(pages, dtype=np.int64)


def test_the_memory_is_found_by_its_file(tmp_path: Path) -> None:
    base = base_file(tmp_path, 50)
    with guest(base) as (ram, _):
        assert module.locate(os.getpid(), base) == ram
        os.link(base, tmp_path / "other name")
        assert module.locate(os.getpid(), tmp_path / "other name") == ram


def test_a_mapping_in_several_ranges_is_one_memory(tmp_path: Path) -> None:
    base = base_file(tmp_path, 50)
    with guest(base) as (ram, pages):
        for first, advice in ((10, mmap.MADV_DONTDUMP), (20, mmap.MADV_DONTFORK)):
            address = ctypes.c_void_p(ram.address + first * PAGE)
            assert ctypes.CDLL(None).madvise(address, ctypes.c_size_t(5 * PAGE), advice) == 0
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(base) in line]
        assert len(maps) == 5
        assert module.locate(os.getpid(), base) == ram
        pages[[9, 10, 24, 25], 0] ^= 1
        assert module.private_pages(ram).tolist() == [9, 10, 24, 25]


def test_a_device_that_maps_shows_otherwise_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_file(tmp_path, 5)
    monkeypatch.setattr(os, "major", lambda device: 0xFFF)
    with guest(base) as (ram, _):
        assert module.locate(os.getpid(), base) == ram


def test_a_file_that_is_not_mapped_or_not_whole_is_a_bug(tmp_path: Path) -> None:
    base = base_file(tmp_path, 5)
    with pytest.raises(Bug):
        module.locate(os.getpid(), base)
    with guest(base):
        os.truncate(base, 6 * PAGE)
        with pytest.raises(Bug):
            module.locate(os.getpid(), base)


def test_a_process_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    base, ram = base_file(tmp_path, 5), Ram(NO_PID, 1 << 32, 5 * PAGE)
    for attempt in (
        lambda: module.locate(NO_PID, base),
        lambda: module.private_pages(ram),
        lambda: module.read_into(ram, numbers(0), blocks.empty(1)),
        lambda: module.write_from(ram, numbers(0), noise(1)),
        lambda: module.apply(ram, [Patch(0, PAGE, None)]),
    ):
        with pytest.raises(Unavailable) as refused:
            attempt()
        assert refused.value.slug == "vmm_gone"


def test_only_written_pages_are_private(tmp_path: Path) -> None:
    base = base_file(tmp_path, 300)
    with guest(base) as (ram, pages):
        assert int(pages[100:200].sum()) > 0  # read: present, but the file's
        assert module.private_pages(ram).tolist() == []
        pages[[0, 150, 299], 4095] ^= 1
        pages[7] = pages[7].copy()  # the same content, but a page of its own
        assert module.private_pages(ram).tolist() == [0, 7, 150, 299]


@pytest.mark.parametrize("room", [1, 2, 3, 7, 1000])
def test_both_ways_to_find_private_pages_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Whatever fits into one answer of the kernel, and across page tables (512 pages each)."""
    monkeypatch.setattr(module, "_SCAN_REGIONS", room)
    monkeypatch.setattr(module, "_PAGEMAP_CHUNK_PAGES", 301)
    rng, base = random.Random(room), tmp_path / "base"
    with base.open("wb") as file:
        file.truncate(4000 * PAGE)
    with guest(base) as (ram, pages), Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        written: set[int] = set()
        for _ in range(12):
            first, count, step = rng.randrange(4000), rng.randrange(1, 60), rng.choice([1, 1, 2, 17])
            some = range(first, min(first + count * step, 4000), step)
            written |= set(some)
            pages[list(some), 3] = 1
            pages[rng.randrange(4000), 0].item()
            listed = module.listed(pagemap.fileno(), ram)
            assert listed.tolist() == sorted(written)
            scanned = module.scanned(pagemap.fileno(), ram)
            assert scanned is None or scanned.tolist() == sorted(written)


def test_many_regions_are_found_once_each(tmp_path: Path) -> None:
    """Linux 6.18 gives a walk_end that lies before what it gave already."""
    base, count = tmp_path / "base", 40_000
    with base.open("wb") as file:
        file.truncate(count * PAGE)
    with guest(base) as (ram, pages):
        pages[: count // 2 : 3, 0] = 1
        assert module.private_pages(ram).tolist() == list(range(0, count // 2, 3))


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EINVAL])
def test_an_older_kernel_lists_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def unknown(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", unknown)
    with guest(base_file(tmp_path, 20)) as (ram, pages):
        pages[[3, 19], 0] ^= 1
        assert module.private_pages(ram).tolist() == [3, 19]


def test_pages_are_read_and_written_in_runs(tmp_path: Path) -> None:
    with guest(base_file(tmp_path, 3000)) as (ram, pages):
        some = np.concatenate([np.arange(0, 2900, 2), np.arange(2950, 3000)])  # more runs than one call takes
        found = blocks.empty(len(some))
        module.read_into(ram, some, found)
        assert (found == pages[some]).all()
        content, before = noise(len(some), seed=1), pages.copy()
        module.write_from(ram, some, content)
        before[some] = content
        assert (pages == before).all()


@pytest.mark.parametrize("pages", [(-1,), (20,), (0, 25)])
def test_pages_outside_the_memory_are_a_bug(tmp_path: Path, pages: tuple[int, ...]) -> None:
    with guest(base_file(tmp_path, 20)) as (ram, _):
        for call in (module.read_into, module.write_from):
            with pytest.raises(Bug):
                call(ram, numbers(*pages), blocks.empty(len(pages)))
        with pytest.raises(Bug):
            module.read_into(ram, numbers(0, 1), blocks.empty(1))


def test_patches_are_applied_whatever_their_order(tmp_path: Path) -> None:
    rng = random.Random(3)
    stores = [noise(400, seed=1), noise(400, seed=2)]
    files = [tmp_path / "one", tmp_path / "two"]
    for file, content in zip(files, stores, strict=True):
        file.write_bytes(content.tobytes())
    with guest(base_file(tmp_path, 1000)) as (ram, pages):
        expected, patches, at = pages.copy(), [], 0
        while at < 990:
            count, kind = rng.randrange(1, 10), rng.randrange(4)
            if kind == 3:
                at += count  # stays as it is
                continue
            if kind == 2:
                patches.append(Patch(at * PAGE, count * PAGE, None))
                expected[at : at + count] = 0
            else:
                stored = rng.randrange(390)
                patches.append(Patch(at * PAGE, count * PAGE, files[kind], stored * PAGE))
                expected[at : at + count] = stores[kind][stored : stored + count]
            at += count
        rng.shuffle(patches)
        module.apply(ram, patches)
        assert (pages == expected).all()
        module.apply(ram, [])


def test_a_long_patch_is_one_too(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(noise(2000, seed=1).tobytes())
    with guest(base_file(tmp_path, 3000)) as (ram, pages):
        module.apply(ram, [Patch(500 * PAGE, 1900 * PAGE, source, 100 * PAGE), Patch(0, 500 * PAGE, None)])
        assert (pages[500:2400] == noise(2000, seed=1)[100:]).all()
        assert not pages[:500].any()


def test_patches_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(2 * PAGE))
    with guest(base_file(tmp_path, 20)) as (ram, _):
        before = open_files()
        for patch in (
            Patch(1, PAGE, None),
            Patch(0, 100, None),
            Patch(0, PAGE, source, 8),
            Patch(20 * PAGE, PAGE, None),
        ):
            with pytest.raises(Bug):
                module.apply(ram, [patch])
        for patch, slug in (
            (Patch(0, 3 * PAGE, source), "build_broken"),
            (Patch(0, PAGE, tmp_path / "none"), "disk_unavailable"),
        ):
            with pytest.raises(Unavailable) as refused:
                module.apply(ram, [patch])
            assert refused.value.slug == slug
        assert open_files() == before


def test_a_page_that_is_swapped_out_is_private_too(tmp_path: Path) -> None:
    """The bits of Documentation/admin-guide/mm/pagemap.rst, of a process that is not there."""
    present, swapped, file, other = 1 << 63, 1 << 62, 1 << 61, 0x00FF_FFFF_FFFF_FFFF
    bits = [0, present, swapped, present | file, swapped | file, file, other, present | other, swapped | other]
    (tmp_path / "pagemap").write_bytes(bytes(8 * 5) + struct.pack(f"{len(bits)}Q", *bits))
    with (tmp_path / "pagemap").open("rb") as pagemap:
        assert module.listed(pagemap.fileno(), Ram(NO_PID, 5 * PAGE, 9 * PAGE)).tolist() == [1, 2, 7, 8]
        with pytest.raises(ProcessLookupError):
            module.listed(pagemap.fileno(), Ram(NO_PID, 5 * PAGE, 10 * PAGE))
