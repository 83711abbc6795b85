"""Accounts and paths, from text."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.envd import users
from wrenn_sandbox.envd.users import User, basic_username, parse_accounts, resolve_path, resolve_user

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
user:x:1000:1000:A User,,,:/home/user:/bin/bash
# a comment
half:x:1
bad:x:one:1:::
bare:x:7:8:::
user:x:2000:2000::/elsewhere:/bin/sh
+::::::
"""
GROUP = "root:x:0:\nsudo:x:27:user,other\nuser:x:1000:\ndup:x:1000:user\nvideo:x:44:other, user\nbroken:x:z:user\n"
USER = User("user", 1000, 1000, (1000,), "/home/user", "/bin/bash")


def test_accounts() -> None:
    accounts = parse_accounts(PASSWD, GROUP)
    assert set(accounts) == {"root", "user", "bare"}
    assert accounts["user"] == User("user", 1000, 1000, (1000, 27, 44), "/home/user", "/bin/bash")
    assert accounts["bare"] == User("bare", 7, 8, (8,), "/", "/bin/sh")
    assert parse_accounts("", "") == {}


@pytest.fixture
def account_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(users, "PASSWD", tmp_path / "passwd")
    monkeypatch.setattr(users, "GROUP", tmp_path / "group")
    monkeypatch.setattr(users, "_FILES", users._AccountFiles())
    return tmp_path


def test_users_are_looked_up_in_the_files_as_they_are_now(account_files: Path) -> None:
    assert resolve_user("root").home == "/root"  # a root file system without accounts
    assert users.initial_default_user() == "root"
    (account_files / "passwd").write_text(PASSWD)
    assert resolve_user("user").uid == 1000
    assert users.initial_default_user() == "user"
    (account_files / "passwd").write_text(PASSWD + "new:x:5:5::/n:/bin/sh\n")
    assert resolve_user("new").uid == 5
    (account_files / "group").write_text(GROUP)
    assert resolve_user("user").groups == (1000, 27, 44)


def test_unknown_user(account_files: Path) -> None:
    with pytest.raises(ConnectError, match="invalid username: 'nobody at all'") as caught:
        resolve_user("nobody at all")
    assert caught.value.code == Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("path", "default", "expected"),
    [
        ("", "", "/home/user"),
        ("", "/work", "/work"),
        ("", "work", "/home/user/work"),
        ("~", "/work", "/home/user"),
        ("~/a", "", "/home/user/a"),
        ("a/../b", "/work", "/home/user/b"),
        ("/a/./b//c/..", "", "/a/b"),
        ("//etc", "", "/etc"),
        ("../../../..", "", "/"),
        ("a b", "", "/home/user/a b"),
        ("Ünï", "", "/home/user/Ünï"),
    ],
)
def test_paths(path: str, default: str, expected: str) -> None:
    assert resolve_path(path, USER, default) == expected


@pytest.mark.parametrize("path", ["a\0b", "~other/x", "\ud800"])
def test_what_no_path_can_be(path: str) -> None:
    with pytest.raises(ConnectError) as caught:
        resolve_path(path, USER)
    assert caught.value.code == Code.INVALID_ARGUMENT


def _basic(text: bytes) -> str:
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (None, None),
        ("", None),
        ("Bearer abc", None),
        (_basic(b"user:"), "user"),
        (_basic(b"user:pass:word").replace("Basic", "basic"), "user"),
        (_basic(b":"), None),
        (_basic(b"justname"), "justname"),
    ],
)
def test_the_user_of_a_request(header: str | None, name: str | None) -> None:
    assert basic_username(header) == name


@pytest.mark.parametrize("header", ["Basic !!!", _basic(b"\xff:")])
def test_broken_credentials(header: str) -> None:
    with pytest.raises(ConnectError) as caught:
        basic_username(header)
    assert caught.value.code == Code.UNAUTHENTICATED
