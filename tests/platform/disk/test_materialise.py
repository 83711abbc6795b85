"""Flat RAM files on file systems that share blocks between files."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.leaks import Footprint
from tests.mapping import mapped
from wrenn_sandbox.core.extents import PAGE, Extent, Extents
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.disk.materialise import materialise
from wrenn_sandbox.disk.pages import PageSource
from wrenn_sandbox.vmm.ram import locate, private_pages

_FS_IOC_FIEMAP = 0xC020660B  # linux/fs.h
_FIEMAP = struct.Struct("QQIIII")  # struct fiemap: start, length, flags, mapped_extents, extent_count, reserved
_FIEMAP_EXTENT = struct.Struct("QQQQQIIII")
_EXTENT_SHARED = 0x2000
PAGES = 8192
BASE, ABOVE = UUID(int=1), UUID(int=2)

pytestmark = [pytest.mark.platform, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture(params=["btrfs", "xfs"])
def sharing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system that can share blocks."""
    make = shutil.which(f"mkfs.{request.param}")
    if make is None:
        pytest.skip(f"mkfs.{request.param} is not installed (apt install btrfs-progs xfsprogs)")
    before = Footprint.take()
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([make, image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
    assert Footprint.take().left_behind(before) == {}


def shared_bytes(path: Path) -> int:
    with path.open("rb") as file:
        request = bytearray(_FIEMAP.pack(0, 1 << 62, 1, 0, 1000, 0) + bytes(1000 * _FIEMAP_EXTENT.size))
        buffer = memoryview(request)
        fcntl.ioctl(file.fileno(), _FS_IOC_FIEMAP, buffer)
    count = _FIEMAP.unpack_from(request)[3]
    extents = [_FIEMAP_EXTENT.unpack_from(request, _FIEMAP.size + i * _FIEMAP_EXTENT.size) for i in range(count)]
    return sum(extent[2] for extent in extents if extent[5] & _EXTENT_SHARED)


def test_what_the_base_has_is_shared(sharing: Path) -> None:
    rng = random.Random(2)
    memory = bytearray(rng.randbytes(PAGES * PAGE))
    base, above = sharing / "base", sharing / "above"
    base.write_bytes(memory)
    fresh = rng.randbytes(110 * PAGE)
    above.write_bytes(fresh)
    extents = Extents.of([Extent(50, 100), Extent(1000, 300, zero=True), Extent(5000, 10)])
    memory[50 * PAGE : 150 * PAGE] = fresh[: 100 * PAGE]
    memory[1000 * PAGE : 1300 * PAGE] = bytes(300 * PAGE)
    memory[5000 * PAGE : 5010 * PAGE] = fresh[100 * PAGE :]
    header = Header.flat(PAGES * PAGE, BASE).extended(ABOVE, extents)
    with PageSource(header, {BASE: base, ABOVE: above}) as source:
        materialise(source, sharing / "flat")
    assert (sharing / "flat").read_bytes() == memory
    assert shared_bytes(sharing / "flat") >= (PAGES - 410) * PAGE * 9 // 10
    with mapped(sharing / "flat") as guest:  # on btrfs, stat(2) and maps name different devices
        ram = locate(guest.pid, sharing / "flat")
        guest.fill([7], 1)
        assert (ram.size, private_pages(ram).tolist()) == (PAGES * PAGE, [7])
