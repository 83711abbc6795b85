import os
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Conflict
from wrenn_sandbox.image import store
from wrenn_sandbox.image.store import Made, Store, allocated_bytes, file_digest, tree_digest


def test_published_folders_appear_whole_and_scratch_goes(tmp_path: Path) -> None:
    images = Store(tmp_path)
    with images.scratch("thing") as scratch:
        product = scratch / "product"
        product.mkdir()
        (product / "file").write_text("x")
        (scratch / "work").write_text("leftover")
        target = images.publish(product, "things", "d1")
    assert (target / "file").read_text() == "x"
    assert list((tmp_path / ".building").iterdir()) == []


def test_publishing_what_is_there_keeps_the_first(tmp_path: Path) -> None:
    images = Store(tmp_path)
    for text in ("first", "second"):
        with images.scratch("thing") as scratch:
            (scratch / "p").mkdir()
            (scratch / "p" / "file").write_text(text)
            images.publish(scratch / "p", "things", "d1")
    assert (tmp_path / "things" / "d1" / "file").read_text() == "first"


def test_a_failed_step_leaves_nothing(tmp_path: Path) -> None:
    images = Store(tmp_path)
    with pytest.raises(OSError, match="disk"), images.scratch("thing") as scratch:
        (scratch / "half").write_text("x")
        raise OSError("disk")
    assert [p.name for p in tmp_path.rglob("*")] == [".building"]


def test_the_next_build_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".building" / "rootfs-1" / "root").mkdir(parents=True)
    with Store(tmp_path).locked():
        assert not (tmp_path / ".building").exists()


def test_nothing_is_swept_through_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / ".building" / "rootfs-1" / "proc"
    inside.mkdir(parents=True)
    monkeypatch.setattr(store, "_mount_points", lambda: [str(inside)])
    with Store(tmp_path).locked():
        assert inside.exists()


def test_two_builds_do_not_work_in_one_store(tmp_path: Path) -> None:
    with Store(tmp_path).locked(), pytest.raises(Conflict) as caught, Store(tmp_path).locked():
        pass
    assert caught.value.slug == "image_build_running"
    with Store(tmp_path).locked():
        pass


def test_records_are_read_back_and_bad_ones_ignored(tmp_path: Path) -> None:
    images = Store(tmp_path)
    made = Made("d1", 12, {"release": "6.1"}, ("a_1_amd64.deb",))
    images.remember("kernel", "key", made)
    assert images.recall("kernel", "key") == made
    assert images.recall("kernel", "other") is None
    (tmp_path / "inputs" / "kernel" / "key.json").write_text('{"digest": 1')
    assert images.recall("kernel", "key") is None


def test_equal_contents_have_equal_digests_however_they_are_stored(tmp_path: Path) -> None:
    data = b"x" * 5000
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(9 << 20)
        file.seek(4 << 20)
        file.write(data)
    (tmp_path / "full").write_bytes(b"\0" * (4 << 20) + data + b"\0" * ((5 << 20) - len(data)))
    assert file_digest(tmp_path / "sparse") == file_digest(tmp_path / "full")
    assert len(file_digest(tmp_path / "full")) == store.DIGEST_DIGITS


@pytest.mark.parametrize("other", [b"", b"\0", b"\0\0", b"ax", b"xa"])
def test_size_place_and_content_count(tmp_path: Path, other: bytes) -> None:
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "other").write_bytes(other)
    assert file_digest(tmp_path / "one") != file_digest(tmp_path / "other")


def test_a_trees_digest_counts_names_modes_links_but_not_times(tmp_path: Path) -> None:
    def tree(name: str) -> Path:
        root = tmp_path / name
        (root / "folder").mkdir(parents=True)
        (root / "folder" / "file").write_text("x")
        (root / "link").symlink_to("folder/file")
        return root

    first, second = tree("a"), tree("b")
    os.utime(second / "folder" / "file", (1, 1))
    assert tree_digest(first) == tree_digest(second)
    (second / "folder" / "file").chmod(0o755)
    changed = tree_digest(second)
    (second / "link").unlink()
    (second / "link").symlink_to("folder")
    assert len({tree_digest(first), changed, tree_digest(second)}) == 3


def test_space_is_counted_as_allocated(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert allocated_bytes(tmp_path) < 1 << 20
