"""Images as mke2fs really makes them."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path

import pytest

from wrenn_sandbox.image.rootfs import format_ext4
from wrenn_sandbox.image.store import allocated_bytes, file_digest

pytestmark = pytest.mark.platform


def _format(tree: Path, image: Path, size_mib: int = 64) -> Path:
    asyncio.run(format_ext4(tree, image, size_mib))
    return image


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    (tmp_path / "tree" / "etc" / "hostname").write_text("sandbox\n")
    return tmp_path / "tree"


def test_an_image_is_clean_and_holds_the_tree(tree: Path, tmp_path: Path) -> None:
    image = _format(tree, tmp_path / "image")
    check = subprocess.run(["/sbin/e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    shown = subprocess.run(
        ["/sbin/debugfs", "-R", "cat /etc/hostname", image], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "sandbox\n"


def test_a_big_image_costs_only_its_content(tree: Path, tmp_path: Path) -> None:
    image = _format(tree, tmp_path / "image", 8192)
    assert image.stat().st_size == 8192 << 20
    assert allocated_bytes(image) < 40 << 20


def test_nothing_is_left_for_the_first_mount_to_initialise(tree: Path, tmp_path: Path) -> None:
    image = _format(tree, tmp_path / "image", 1024)
    shown = subprocess.run(["/sbin/dumpe2fs", image], capture_output=True, text=True, check=True).stdout
    groups = [line for line in shown.splitlines() if re.match(r"Group \d+:", line)]
    assert groups
    assert all("ITABLE_ZEROED" in line for line in groups)
    assert "Reserved block count:     0" in shown


def test_no_mkfs_setting_of_the_host_gets_in(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _format(tree, tmp_path / "first")
    (tmp_path / "mke2fs.conf").write_text("[fs_types]\n\text4 = {\n\t\tinode_ratio = 4096\n\t}\n")
    monkeypatch.setenv("MKE2FS_CONFIG", str(tmp_path / "mke2fs.conf"))
    second = _format(tree, tmp_path / "second")
    assert file_digest(first) == file_digest(second)
