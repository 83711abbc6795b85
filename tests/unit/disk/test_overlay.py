from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Bug, Exhausted, Unavailable
from wrenn_sandbox.disk import overlay

GIB = 1 << 30


def _u32(data: bytes, offset: int) -> int:
    return int(struct.unpack_from(">I", data, offset)[0])


def _u64(data: bytes, offset: int) -> int:
    return int(struct.unpack_from(">Q", data, offset)[0])


def test_the_header_is_the_one_of_the_format() -> None:
    head = overlay.empty(16 * GIB, "/images/base.ext4", "raw").pieces[0]
    assert head[:4] == b"QFI\xfb"
    assert _u32(head, 4) == 3  # version
    name_at, name_length = _u64(head, 8), _u32(head, 16)
    assert head[name_at : name_at + name_length] == b"/images/base.ext4"
    assert _u32(head, 20) == 17  # cluster bits
    assert _u64(head, 24) == 16 * GIB
    assert _u32(head, 32) == 0  # not encrypted
    assert _u32(head, 60) == 0  # no snapshots
    assert _u64(head, 72) == 1 << 4  # incompatible: extended L2 entries, not dirty
    assert _u64(head, 80) == 0  # compatible: no lazy refcounts
    assert _u32(head, 96) == 4  # 16-bit refcounts
    assert _u32(head, 100) == 112  # header length
    assert head[112:128] == struct.pack(">II", 0xE2792ACA, 3) + b"raw" + b"\0" * 5


@pytest.mark.parametrize(
    ("size", "entries", "clusters"), [(512, 1, 4), (GIB, 1, 4), (GIB + 512, 2, 4), (20 << 40, 20480, 5)]
)
def test_the_tables_cover_the_disk(size: int, entries: int, clusters: int) -> None:
    image = overlay.empty(size, "/b", "qcow2")
    head, cluster = image.pieces[0], 1 << 17
    assert _u32(head, 36) == entries  # an L1 entry stands for 1 GiB
    assert (_u64(head, 40), _u64(head, 48), _u32(head, 56)) == (3 * cluster, cluster, 1)
    assert image.length == clusters * cluster
    assert _u64(image.pieces[cluster], 0) == 2 * cluster
    assert image.pieces[2 * cluster] == b"\0\1" * clusters  # each used once


def test_sizes_round_up_to_sectors() -> None:
    assert _u64(overlay.empty(1000, "/b", "raw").pieces[0], 24) == 1024


@pytest.mark.parametrize(
    ("size", "name", "kind"), [(0, "/b", "raw"), (512, "/" + "n" * 1023, "raw"), (512, "/b", "vmdk")]
)
def test_impossible_overlays_are_bugs(size: int, name: str, kind: str) -> None:
    with pytest.raises(Bug):
        overlay.empty(size, name, kind)


def test_an_overlay_is_as_large_as_what_it_stands_on(tmp_path: Path) -> None:
    raw, first, second = tmp_path / "raw", tmp_path / "first", tmp_path / "second"
    raw.write_bytes(b"\0" * 4096)
    overlay.create(first, raw, "raw")
    overlay.create(second, first, "qcow2")
    assert overlay.virtual_size(second, "qcow2") == 4096
    assert second.stat().st_mode & 0o777 == 0o600
    assert second.stat().st_blocks * 512 < 64 * 1024


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\0" * 512)
    (tmp_path / "there").write_bytes(b"precious")
    with pytest.raises(Unavailable) as caught:
        overlay.create(tmp_path / "there", tmp_path / "raw", "raw")
    assert caught.value.slug == "disk_unavailable"
    assert (tmp_path / "there").read_bytes() == b"precious"


def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "raw").write_bytes(b"\0" * 512)
    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(Exhausted) as caught:
        overlay.create(tmp_path / "new", tmp_path / "raw", "raw")
    assert caught.value.slug == "host_disk_full"
    assert not (tmp_path / "new").exists()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\0" * 512)
    with pytest.raises(Bug):
        overlay.virtual_size(tmp_path / "raw", "qcow2")
