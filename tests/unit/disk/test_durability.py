from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Exhausted, Unavailable
from wrenn_sandbox.disk import durability


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_exhaustion(number: int) -> None:
    with pytest.raises(Exhausted) as caught, durability.disk_errors("the build"):
        raise OSError(number, "full")
    assert caught.value.slug == "host_disk_full"


def test_other_errors_say_what_failed() -> None:
    said = r"fails with the build: Input/output error\."
    with pytest.raises(Unavailable, match=said) as caught, durability.disk_errors("the build"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert caught.value.slug == "disk_unavailable"


def test_only_the_want_of_room_is_fullness() -> None:
    assert durability.is_full(OSError(errno.ENOSPC, "full")) and durability.is_full(OSError(errno.EDQUOT, "full"))
    assert not durability.is_full(OSError(errno.EROFS, "read-only"))
    assert not durability.is_full(ValueError("full"))


def test_a_file_is_the_new_one_when_the_write_returns(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durability.write(path, b"one")
    durability.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "file"
    durability.write(path, b"one")
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError):
        durability.write(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_aside_goes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".a.new").mkdir()
    (tmp_path / ".a.new" / "memory").touch()
    for name in (".b.old", ".c.work", ".d.new", "e.new", "f", ".lock"):
        (tmp_path / name).touch()
    assert durability.remove_asides(tmp_path, (durability.NEW, durability.OLD), frozenset({".d.new"})) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [".c.work", ".d.new", ".lock", "e.new", "f"]


def test_the_name_aside_is_hidden_and_beside() -> None:
    assert durability.aside(Path("/data/builds/1"), durability.OLD) == Path("/data/builds/.1.old")


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content" * 1000)
    assert durability.sha256(tmp_path / "file") == hashlib.sha256(b"content" * 1000).hexdigest()


def test_holes_take_no_room(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "full").write_bytes(b"x" * 8192)
    assert 8192 <= durability.allocated_bytes(tmp_path) < 1 << 20


def test_a_file_that_goes_while_it_is_measured_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").write_bytes(b"x" * 8192)
    alone = durability.allocated_bytes(tmp_path)
    listed = [tmp_path / "there", tmp_path / "gone"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    assert durability.allocated_bytes(tmp_path) == alone >= 8192
