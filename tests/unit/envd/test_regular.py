from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Conflict, Denied, Invalid, NoSpace, NotFound, WrennError
from wrenn_sandbox.envd.regular import (
    create_as_root,
    discard,
    make_directories,
    open_source,
    open_target,
    read_at,
    translate,
    write_all,
)
from wrenn_sandbox.envd.users import User

ME = User("me", os.getuid(), os.getgid(), (os.getgid(),), "/", "/bin/sh")
SOMEBODY = User("somebody", 12345, 12345, (12345,), "/", "/bin/sh")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")


@pytest.fixture(autouse=True)
def _umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def special_files(folder: Path) -> list[str]:
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket"))
    return ["/dev/zero", "/dev/null", "/dev/urandom", str(folder / "fifo"), str(folder / "socket")]


def test_what_is_not_regular_is_refused_in_both_directions(tmp_path: Path) -> None:
    for path in special_files(tmp_path):
        for attempt in (lambda p: open_source(p, 10), lambda p: open_target(p, ME)):
            with pytest.raises(Invalid) as caught:
                attempt(path)
            assert caught.value.slug == "not_regular"
            assert caught.value.message == f"path '{path}' is not a regular file"
    for attempt in (lambda p: open_source(p, 10), lambda p: open_target(p, ME)):
        with pytest.raises(Invalid) as caught:
            attempt(str(tmp_path))
        assert caught.value.slug == "is_directory"


def test_reading(tmp_path: Path) -> None:
    path, link = tmp_path / "f", tmp_path / "link"
    path.write_bytes(b"0123456789")
    link.symlink_to(path)
    for name in (path, link):
        with open_source(str(name), 20).file as file:
            assert read_at(file, 4, 3) == b"3456"
    whole, part, exact = (open_source(str(path), n) for n in (11, 4, 10))
    assert (whole.head, whole.whole) == (b"0123456789", True)
    assert (part.head, part.whole) == (b"0123", False)
    assert (exact.head, exact.whole) == (b"0123456789", False)
    for source in (whole, part, exact):
        source.file.close()


def test_files_that_lie_about_their_size() -> None:
    source = open_source("/proc/self/status", 1 << 16)
    source.file.close()
    assert source.status.st_size == 0
    assert source.whole
    assert source.head.startswith(b"Name:")


def test_missing_and_looping(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, kind in (
        ("missing", NotFound),
        ("file/below", NotFound),
        ("dangling", NotFound),
        ("loop", Invalid),
        ("x" * 300, Invalid),
    ):
        with pytest.raises(kind):
            open_source(str(tmp_path / name), 10)


def test_writing_in_place_keeps_inode_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("long before")
    path.chmod(0o751)
    before = path.stat()
    target = open_target(str(path), ME)
    with target.file:
        write_all(target.file, [b"a", b"bc"], target.path)
    after = path.stat()
    assert not target.created
    assert path.read_bytes() == b"abc"
    assert (after.st_ino, stat.S_IMODE(after.st_mode)) == (before.st_ino, 0o751)


@as_root
def test_a_new_file_and_its_parents_belong_to_the_user(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "f"
    target = open_target(str(path), SOMEBODY)
    target.file.close()
    assert target.created
    for made, mode in ((path, 0o644), (path.parent, 0o755), (path.parent.parent, 0o755)):
        status = made.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 12345, mode)
    assert tmp_path.stat().st_uid == 0


def test_through_a_link_that_leads_nowhere_yet(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    open_target(str(tmp_path / "link"), ME).file.close()
    assert (tmp_path / "new").is_file()


def test_a_file_where_a_directory_must_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid):
        open_target(str(tmp_path / "file" / "below"), ME)


def test_make_directories(tmp_path: Path) -> None:
    assert make_directories(tmp_path / "a" / "b", ME)
    assert not make_directories(tmp_path / "a" / "b", ME)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        make_directories(tmp_path / "file", ME)


@as_root
def test_made_by_root_for_a_user(tmp_path: Path) -> None:
    path = tmp_path / "data" / "x"
    target = create_as_root(str(path), SOMEBODY)
    target.file.close()
    assert target.created
    assert (path.stat().st_uid, path.parent.stat().st_uid) == (12345, 12345)
    with pytest.raises(Denied):  # never an existing file
        create_as_root(str(path), SOMEBODY)


def test_made_by_root_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("real/new")
    for name in ("link/x", "dangling"):
        with pytest.raises((Denied, Invalid)):
            create_as_root(str(tmp_path / name), ME)
    assert list((tmp_path / "real").iterdir()) == []


def test_a_failed_upload_takes_its_new_file_away(tmp_path: Path) -> None:
    path = tmp_path / "f"
    target = open_target(str(path), ME)
    with target.file:
        discard(target)
    assert not path.exists()
    target = open_target(str(path), ME)
    with target.file:
        path.unlink()
        path.write_text("somebody else's")
        discard(target)
    assert path.read_text() == "somebody else's"


@pytest.mark.parametrize(
    ("number", "writing", "kind"),
    [
        (errno.ENOENT, False, NotFound),
        (errno.ENOTDIR, False, NotFound),
        (errno.ENOTDIR, True, Invalid),
        (errno.EISDIR, True, Invalid),
        (errno.EACCES, False, Denied),
        (errno.EROFS, True, Denied),
        (errno.ENOSPC, True, NoSpace),
        (errno.EDQUOT, True, NoSpace),
        (errno.ETXTBSY, True, Conflict),
    ],
)
def test_errors(number: int, writing: bool, kind: type[WrennError]) -> None:
    error = translate(OSError(number, "x"), "/p", writing=writing)
    assert type(error) is kind


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    before = {p.name for p in Path("/proc/self/fd").iterdir()}
    for path in (*special_files(tmp_path), str(tmp_path), str(tmp_path / "missing"), str(tmp_path / "f" / "x")):
        for attempt in (lambda p: open_source(p, 10), lambda p: open_target(p, ME)):
            try:
                attempt(path).file.close()
            except WrennError:
                pass
    assert {p.name for p in Path("/proc/self/fd").iterdir()} == before
