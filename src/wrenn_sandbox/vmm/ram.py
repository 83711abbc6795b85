"""The guest's memory inside a VMM: where it is mapped, which pages are the guest's own, and reading and writing them.

A restored machine maps a RAM file privately (``MAP_PRIVATE``, mmap(2)). A page that is written becomes an anonymous
copy of its own, which /proc/PID/pagemap shows: present or swapped, and not file-backed (Documentation/admin-guide/mm/
pagemap.rst). So what changed since the restore is known without any dirty logging. All of this needs the rights of
ptrace(2) over the VMM: root, or its parent under the same user.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from wrenn_sandbox.core.errors import Bug, Unavailable, WrennError
from wrenn_sandbox.core.extents import PAGE, Pages, page_numbers
from wrenn_sandbox.disk import blocks
from wrenn_sandbox.disk.blocks import Content
from wrenn_sandbox.disk.durability import disk_errors
from wrenn_sandbox.vmm.driver import Patch, Ram
from wrenn_sandbox.vmm.transfer import Area

#: Pages in one go: 2 MiB stay in a processor's cache, and two threads still take turns seldom.
CHUNK_PAGES = 512

# linux/fs.h: struct pm_scan_arg and PAGEMAP_SCAN = _IOWR('f', 16, struct pm_scan_arg), Linux 6.7
_SCAN_ARGUMENT = struct.Struct("12Q")
_PAGEMAP_SCAN = 3 << 30 | _SCAN_ARGUMENT.size << 16 | ord("f") << 8 | 16
_PAGE_IS_FILE, _PAGE_IS_PRESENT, _PAGE_IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4
_SCAN_REGIONS = 16384
_NO_SCAN = frozenset({errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP})

_PAGEMAP_CHUNK_PAGES = 65536
_PRIVATE_SHIFT = np.uint64(61)  # bits 63 present, 62 swapped, 61 file-backed or shared


def locate(pid: int, memory_file: Path) -> Ram:
    """Where the VMM ``pid`` has mapped ``memory_file``, all of it. Raises Unavailable (``vmm_gone``), Bug."""
    info = memory_file.stat()
    ranges = list(_ranges(pid, os.major(info.st_dev), os.minor(info.st_dev), info.st_ino))
    if not ranges:  # btrfs and overlayfs tell stat(2) another device than they show in maps
        ranges = list(_ranges(pid, *_as_mapped(memory_file)))
    whole = _longest(sorted(ranges))
    if whole is None:
        _require_alive(pid)
        raise Bug(f"Process {pid} does not map {memory_file}.")
    address, end = whole
    if end - address < info.st_size // PAGE * PAGE:
        raise Bug(f"Process {pid} maps only {end - address} bytes of {memory_file}.")
    return Ram(pid, address, end - address)


def private_pages(ram: Ram) -> Pages:
    """The numbers of the pages that are the guest's own, ascending. Raises Unavailable (``vmm_gone``)."""
    try:
        with Path(f"/proc/{ram.pid}/pagemap").open("rb", buffering=0) as pagemap:
            pages = scanned(pagemap.fileno(), ram)
            if pages is None:
                pages = listed(pagemap.fileno(), ram)
    except OSError as error:
        raise _translated(error, ram.pid) from error
    # A process that ends meanwhile has no pages any more, which must not look like a guest that changed nothing.
    read_into(ram, np.zeros(1, dtype=np.int64), blocks.empty(1))
    return pages


def scanned(pagemap: int, ram: Ram) -> Pages | None:
    """``private_pages`` by PAGEMAP_SCAN, which skips what is not there; None where the kernel has none. OSError."""
    regions = np.empty((_SCAN_REGIONS, 3), dtype=np.uint64)  # struct page_region: start, end, categories
    found, start, end, count = [], ram.address, ram.address + ram.size, len(regions)
    while start < end and count == len(regions):  # less than there was room for: that was all
        argument = bytearray(
            _SCAN_ARGUMENT.pack(
                _SCAN_ARGUMENT.size, 0, start, end, 0, regions.ctypes.data, len(regions), 0,
                _PAGE_IS_FILE, _PAGE_IS_FILE,  # inverted, required: not file-backed
                _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, _PAGE_IS_PRESENT,
            )
        )  # fmt: skip
        try:
            count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
        except OSError as error:
            if error.errno in _NO_SCAN:
                return None
            raise
        found.append(regions[:count, :2].astype(np.int64))
        # Not walk_end: it stays behind where a walk was done in several steps and came to its end (Linux 6.18).
        start = int(found[-1][-1, 1]) if count else end
    rows = np.concatenate(found)
    return page_numbers((rows[:, 0] - ram.address) // PAGE, (rows[:, 1] - rows[:, 0]) // PAGE)


def listed(pagemap: int, ram: Ram) -> Pages:
    """``private_pages`` from the eight bytes that /proc/PID/pagemap has for every page. OSError."""
    found, total = [], ram.size // PAGE
    for first in range(0, total, _PAGEMAP_CHUNK_PAGES):
        count = min(_PAGEMAP_CHUNK_PAGES, total - first)
        raw = os.pread(pagemap, count * 8, (ram.address // PAGE + first) * 8)
        if len(raw) != count * 8:
            raise ProcessLookupError(errno.ESRCH, "the process has ended")
        bits = np.frombuffer(raw, dtype=np.uint64) >> _PRIVATE_SHIFT
        found.append(np.flatnonzero((bits >= 2) & (bits & 1 == 0)) + first)
    return np.concatenate(found).astype(np.int64)


def read_into(ram: Ram, pages: Pages, out: Content) -> None:
    """Read these pages into the first rows of ``out``. Raises Unavailable (``vmm_gone``)."""
    _require_inside(ram, pages, out)
    try:
        Area(ram.pid, ram.address).read(pages, out)
    except OSError as error:
        raise _translated(error, ram.pid) from error


def write_from(ram: Ram, pages: Pages, content: Content) -> None:
    """Write the first rows of ``content`` over these pages. Raises Unavailable (``vmm_gone``)."""
    _require_inside(ram, pages, content)
    try:
        Area(ram.pid, ram.address).write(pages, content)
    except OSError as error:
        raise _translated(error, ram.pid) from error


def apply(ram: Ram, patches: Iterable[Patch]) -> None:
    """Write ``patches`` over the memory. Raises Unavailable (``vmm_gone``, ``build_broken``, ``disk_unavailable``)."""
    for source, group in groupby(sorted(patches, key=_place), key=lambda patch: patch.source):
        columns = np.array([(p.address, p.length, p.offset) for p in group], dtype=np.int64)
        if (columns % PAGE).any():
            raise Bug("Patches are made of whole pages.")
        first, count, block = (columns // PAGE).T
        pages = page_numbers(first, count)
        if source is None:
            _apply_zeros(ram, pages)
        else:
            _apply_file(ram, pages, source, page_numbers(block, count))


def _place(patch: Patch) -> tuple[str, int, int]:
    return str(patch.source or ""), patch.offset, patch.address


def _apply_zeros(ram: Ram, pages: Pages) -> None:
    zeros = np.zeros((min(CHUNK_PAGES, len(pages)), PAGE), dtype=np.uint8)
    for at in range(0, len(pages), CHUNK_PAGES):
        write_from(ram, pages[at : at + CHUNK_PAGES], zeros)


def _apply_file(ram: Ram, pages: Pages, source: Path, stored: Pages) -> None:
    content = blocks.empty(min(CHUNK_PAGES, len(pages)))
    with disk_errors("the memory of a build"), source.open("rb", buffering=0) as file:
        for at in range(0, len(pages), CHUNK_PAGES):
            blocks.read(file.fileno(), stored[at : at + CHUNK_PAGES], content)
            write_from(ram, pages[at : at + CHUNK_PAGES], content)


def _require_inside(ram: Ram, pages: Pages, content: Content) -> None:
    if len(pages) and (int(pages.min()) < 0 or (int(pages.max()) + 1) * PAGE > ram.size or len(pages) > len(content)):
        raise Bug("Pages outside the guest's memory were asked for.")


def _ranges(pid: int, major: int, minor: int, inode: int) -> Iterator[tuple[int, int, int]]:
    """(address, end, offset in the file) of every mapping of a file, as /proc/PID/maps has it (proc_pid_maps(5))."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError as error:
        raise _translated(error, pid) from error
    wanted = [f"{major:02x}:{minor:02x}", str(inode)]
    for line in lines:
        addresses, _, offset, *file = line.split(maxsplit=5)[:5]
        if file == wanted:
            start, _, end = addresses.partition("-")
            yield int(start, 16), int(end, 16), int(offset, 16)


def _as_mapped(file: Path) -> tuple[int, int, int]:
    """Device and inode of ``file`` as maps shows them, seen on a mapping of our own."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), PAGE, prot=mmap.PROT_READ) as mapped:
        address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
        for line in Path("/proc/self/maps").read_text().splitlines():
            words = line.split(maxsplit=5)
            if int(words[0].split("-")[0], 16) == address:
                major, minor = (int(number, 16) for number in words[3].split(":"))
                return major, minor, int(words[4])
    return 0, 0, 0


def _longest(ranges: list[tuple[int, int, int]]) -> tuple[int, int] | None:
    """The longest piece that maps the file from its start: a mapping in several ranges counts as one."""
    pieces: list[tuple[int, int]] = []
    for start, end, offset in ranges:
        if pieces and pieces[-1][1] == start and offset == start - pieces[-1][0]:
            pieces[-1] = (pieces[-1][0], end)
        elif offset == 0:
            pieces.append((start, end))
    return max(pieces, key=lambda piece: piece[1] - piece[0], default=None)


def _require_alive(pid: int) -> None:
    """Raise Unavailable (``vmm_gone``) for a process that has no memory any more."""
    try:
        size, _, _ = Path(f"/proc/{pid}/statm").read_text().partition(" ")  # proc_pid_statm(5)
    except OSError as error:
        raise _translated(error, pid) from error
    if size == "0":
        raise _translated(ProcessLookupError(errno.ESRCH, "ended"), pid)


def _translated(error: OSError, pid: int) -> WrennError:
    if error.errno in {errno.ESRCH, errno.ENOENT, errno.EFAULT}:
        return Unavailable(f"The virtual machine in process {pid} has ended.", slug="vmm_gone")
    return Bug(f"The memory of process {pid} cannot be reached: {error.strerror}.")
