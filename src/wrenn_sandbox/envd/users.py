"""The guest's users, and where a path of theirs leads.

The accounts are read from ``/etc/passwd`` and ``/etc/group`` themselves (formats: passwd(5), group(5)): envd runs on
the C library of the tools disk, whose name service would look for plug-ins that are not in the guest.
"""

from __future__ import annotations

import base64
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

from connectrpc.code import Code
from connectrpc.errors import ConnectError

PASSWD = Path("/etc/passwd")
GROUP = Path("/etc/group")
#: The account that templates make for their users; without it processes run as root.
PREFERRED_USER = "user"


@dataclass(frozen=True, slots=True)
class User:
    """One account. ``groups`` are all its group ids, the primary one first."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def parse_accounts(passwd: str, group: str) -> dict[str, User]:
    """All accounts by name. Lines that are not accounts are skipped; of two with one name the first counts."""
    memberships: dict[str, list[int]] = {}
    for line in group.splitlines():
        fields = line.split(":")
        if len(fields) == 4 and fields[2].isdecimal():
            for member in filter(None, fields[3].split(",")):
                memberships.setdefault(member.strip(), []).append(int(fields[2]))
    accounts: dict[str, User] = {}
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) != 7 or not fields[0] or not (fields[2].isdecimal() and fields[3].isdecimal()):
            continue
        name, gid = fields[0], int(fields[3])
        groups = tuple(dict.fromkeys([gid, *memberships.get(name, ())]))
        user = User(name, int(fields[2]), gid, groups, fields[5] or "/", fields[6] or "/bin/sh")
        accounts.setdefault(name, user)
    return accounts


class _AccountFiles:
    """The parsed account files, parsed again only when one of them changed."""

    def __init__(self) -> None:
        self._seen: tuple[tuple[int, int, int], ...] = ()
        self._accounts: dict[str, User] = {}

    def accounts(self) -> dict[str, User]:
        seen = tuple(_fingerprint(path) for path in (PASSWD, GROUP))
        if seen != self._seen:
            self._accounts = parse_accounts(_text(PASSWD), _text(GROUP))
            # A root file system without accounts still has uid 0.
            self._accounts.setdefault("root", User("root", 0, 0, (0,), "/root", "/bin/sh"))
            self._seen = seen
        return self._accounts


_FILES = _AccountFiles()


def resolve_user(name: str) -> User:
    """The account called ``name``; ConnectError ``unauthenticated`` when there is none."""
    user = _FILES.accounts().get(name)
    if user is None:
        raise ConnectError(Code.UNAUTHENTICATED, f"invalid username: '{name}'")
    return user


def basic_username(authorization: str | None) -> str | None:
    """The user an ``Authorization: Basic`` header names, its password ignored; None when it names nobody.

    ConnectError ``unauthenticated`` when the header is no such thing as it says (RFC 7617).
    """
    scheme, _, credentials = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[0] or None
    except ValueError:
        raise ConnectError(Code.UNAUTHENTICATED, "The Basic credentials are not base64 of 'user:'.") from None


def initial_default_user() -> str:
    """Who runs processes until ``/init`` says otherwise: ``user`` where there is one, else root."""
    return PREFERRED_USER if PREFERRED_USER in _FILES.accounts() else "root"


def resolve_path(path: str, user: User, default_workdir: str = "") -> str:
    """``path`` as ``user`` means it: absolute, with no ``.`` or ``..`` left.

    An empty path is the default working directory, else the home; ``~`` and relative paths start at the home.
    ConnectError ``invalid_argument`` for what no path can be.
    """
    path = path or default_workdir or user.home
    if "\0" in path:
        raise ConnectError(Code.INVALID_ARGUMENT, "A path cannot contain a NUL character.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ConnectError(Code.INVALID_ARGUMENT, "A path must be valid Unicode text.") from None
    if path == "~" or path.startswith("~/"):
        path = user.home + path[1:]
    elif path.startswith("~"):
        raise ConnectError(
            Code.INVALID_ARGUMENT, "Only '~' and '~/...' are expanded; give the absolute path of another user's home."
        )
    # normpath keeps two leading slashes, which POSIX lets mean something else; on Linux they do not.
    return posixpath.normpath("/" + posixpath.join(user.home, path).lstrip("/"))


def _fingerprint(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0, 0)
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
