from pathlib import Path

import pytest

from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.catalog import Catalog

SET = ArtefactSet(runtime="r", kernel="k", kernel_release="6.1", initramfs="i", tools="t", rootfs="f")


def test_paths_carry_the_content_hash(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    assert catalog.runtime("a") == tmp_path / "runtimes" / "a"
    assert catalog.kernel("a") == tmp_path / "kernels" / "a" / "vmlinuz"
    assert catalog.initramfs("a") == tmp_path / "initramfs" / "a" / "initramfs"
    assert catalog.tools("a") == tmp_path / "tools" / "a" / "tools.squashfs"
    assert catalog.rootfs("a") == tmp_path / "rootfs" / "a" / "rootfs.ext4"


def test_the_set_made_current_is_read_back(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "images")
    catalog.set_current(SET)
    assert catalog.current() == SET
    assert sorted(p.name for p in catalog.root.iterdir()) == ["current.json"]


@pytest.mark.parametrize("content", [None, "", "{}", '{"runtime": "r", "else": 1}', "[]"])
def test_no_usable_set_says_what_to_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "current.json").write_text(content)
    with pytest.raises(Unavailable, match="make image") as caught:
        Catalog(tmp_path).current()
    assert caught.value.slug == "artefacts_missing"
