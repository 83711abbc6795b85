"""Our overlays before the judge of the format: the real qemu-img."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from wrenn_sandbox.disk import overlay

pytestmark = [
    pytest.mark.platform,
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed (apt install qemu-utils)"),
]


def _img(*words: str | Path) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("size", [512, 4096, (1 << 30) - 512, 1 << 30, 15 << 40])
def test_qemu_img_finds_no_fault(tmp_path: Path, size: int) -> None:
    raw, first, second = tmp_path / "base.raw", tmp_path / "first.qcow2", tmp_path / "second.qcow2"
    with raw.open("wb") as file:
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("this file system holds no file of that size")
    overlay.create(first, raw, "raw")
    overlay.create(second, first, "qcow2")
    for path, backing, kind in ((first, raw, "raw"), (second, first, "qcow2")):
        assert "No errors" in _img("check", path)
        info = json.loads(_img("info", "--output=json", path))
        assert info["virtual-size"] == size
        assert info["full-backing-filename"] == str(backing)
        assert info["backing-filename-format"] == kind
        assert info["format-specific"]["data"]["extended-l2"] is True
        assert info["format-specific"]["data"]["lazy-refcounts"] is False


def test_what_is_written_is_there_and_what_is_not_comes_from_below(tmp_path: Path) -> None:
    raw, disk, flat = tmp_path / "base.raw", tmp_path / "disk.qcow2", tmp_path / "flat.raw"
    raw.write_bytes(b"B" * (8 << 20))
    overlay.create(disk, raw, "raw")
    if shutil.which("qemu-io") is None:
        pytest.skip("qemu-io is not installed (apt install qemu-utils)")
    subprocess.run(["qemu-io", "-c", "write -q -P 78 4096 4096", "-c", "write -q -P 78 7M 1M", disk], check=True)
    assert "No errors" in _img("check", disk)
    _img("convert", "-O", "raw", disk, flat)
    content = flat.read_bytes()
    assert content == b"B" * 4096 + b"N" * 4096 + b"B" * ((7 << 20) - 8192) + b"N" * (1 << 20)
    assert raw.read_bytes() == b"B" * (8 << 20)
    assert disk.stat().st_blocks * 512 < 2 << 20  # 4 KiB written took no 128 KiB cluster
