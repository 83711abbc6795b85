from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from wrenn_sandbox.envd import users
from wrenn_sandbox.envd.entries import Kind, Names, describe, kind_of, letters, walk

NAMES = Names({os.getuid(): "me"}, {os.getgid(): "us"})


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (stat.S_IFREG | 0o644, "-rw-r--r--"),
        (stat.S_IFDIR | 0o755, "drwxr-xr-x"),
        (stat.S_IFLNK | 0o777, "Lrwxrwxrwx"),
        (stat.S_IFDIR | 0o1777, "dtrwxrwxrwx"),
        (stat.S_IFREG | 0o4755, "urwxr-xr-x"),
        (stat.S_IFREG | 0o2711, "grwx--x--x"),
        (stat.S_IFCHR | 0o666, "Dcrw-rw-rw-"),
        (stat.S_IFBLK | 0o660, "Drw-rw----"),
        (stat.S_IFIFO | 0o600, "prw-------"),
        (stat.S_IFSOCK | 0o600, "Srw-------"),
    ],
)
def test_letters(mode: int, text: str) -> None:
    assert letters(mode) == text


def test_kinds() -> None:
    modes = {
        stat.S_IFREG: Kind.FILE,
        stat.S_IFDIR: Kind.DIRECTORY,
        stat.S_IFLNK: Kind.SYMLINK,
        stat.S_IFIFO: Kind.OTHER,
    }
    assert {mode: kind_of(mode) for mode in modes} == modes


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("hello")
    path.chmod(0o640)
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    entry = describe(str(path), NAMES)
    assert (entry.name, entry.kind, entry.size, entry.permissions) == ("f", Kind.FILE, 5, "-rw-r-----")
    assert (entry.owner, entry.group, entry.modified_ns) == ("me", "us", 1_700_000_000_123_456_789)
    assert entry.link_target is None
    assert describe("/", NAMES).name == "/"
    with pytest.raises(FileNotFoundError):
        describe(str(tmp_path / "missing"), NAMES)


def test_links_are_their_targets(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("d")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    entry = describe(str(tmp_path / "one"), NAMES)
    assert (entry.path, entry.kind, entry.link_target) == (str(tmp_path / "one"), Kind.DIRECTORY, str(tmp_path / "d"))
    for name in ("dangling", "loop"):
        entry = describe(str(tmp_path / name), NAMES)
        assert (entry.kind, entry.link_target, entry.permissions[0]) == (Kind.SYMLINK, None, "L")


def test_walk(tmp_path: Path) -> None:
    for path in ("b/d/e", "a", "b/c"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "link").symlink_to("b")

    def listed(depth: int, limit: int = 100) -> list[str]:
        return [os.path.relpath(entry.path, tmp_path) for entry in walk(str(tmp_path), depth, limit, NAMES)]

    assert listed(1) == ["a", "b", "link"]
    assert listed(2) == ["a", "b", "b/c", "b/d", "link"]
    assert listed(9) == ["a", "b", "b/c", "b/d", "b/d/e", "link"]
    with pytest.raises(OverflowError):
        listed(9, limit=5)
    assert [entry.path for entry in walk(str(tmp_path / "link"), 1, 9, NAMES)] == [
        f"{tmp_path}/link/c",
        f"{tmp_path}/link/d",
    ]


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\ntoor:x:0:0::/:/bin/sh\nbroken\nu:x:7:7::/:/bin/sh\n")
    monkeypatch.setattr(users, "PASSWD", tmp_path / "passwd")
    monkeypatch.setattr(users, "GROUP", tmp_path / "missing")
    assert Names.read() == Names({0: "root", 7: "u"}, {})
    assert describe(str(tmp_path), Names({}, {})).owner == str(os.getuid())
