"""What there is to say about one path: kind, size, mode, owner, and where a symbolic link leads.

Everything blocks and is called on a ``FileThreads`` thread that has the user's rights.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from wrenn_sandbox.envd import metadata as attributes
from wrenn_sandbox.envd import users


class Kind(Enum):
    """What a path leads to; OTHER are devices, FIFOs and sockets."""

    OTHER = 0
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One path. Of a symbolic link all but ``path`` and ``name`` are its target's, unless it leads nowhere."""

    path: str
    kind: Kind
    size: int
    mode: int
    owner: str
    group: str
    modified_ns: int
    link_target: str | None
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name or "/"

    @property
    def permissions(self) -> str:
        """The mode as letters."""
        return letters(self.mode)


@dataclass(frozen=True, slots=True)
class Names:
    """Names of users and groups by number; a number without a name stands for itself."""

    users: dict[int, str]
    groups: dict[int, str]

    @classmethod
    def read(cls) -> Names:
        """Those of the guest now."""
        return cls(_by_number(users.PASSWD), _by_number(users.GROUP))


def describe(path: str, names: Names) -> Entry:
    """The entry at ``path``. Raises OSError when there is none."""
    status, target = os.lstat(path), None
    if stat.S_ISLNK(status.st_mode):
        target = os.path.realpath(path)
        try:
            status = Path(path).stat()
        except OSError:
            target = None  # dangling or looping: it is the link itself that is there
    return Entry(
        path=path,
        kind=kind_of(status.st_mode),
        size=status.st_size,
        mode=status.st_mode,
        owner=names.users.get(status.st_uid, str(status.st_uid)),
        group=names.groups.get(status.st_gid, str(status.st_gid)),
        modified_ns=status.st_mtime_ns,
        link_target=target,
        metadata=attributes.read(path) if stat.S_ISREG(status.st_mode) else {},
    )


def walk(path: str, depth: int, limit: int, names: Names) -> list[Entry]:
    """What is below a directory, ``depth`` levels, each directory before its content, sorted by name.

    What vanishes or may not be entered on the way is left out. Raises OSError when ``path`` cannot be listed,
    OverflowError above ``limit`` entries.
    """
    found: list[Entry] = []
    _walk(path, depth, limit, names, found)
    return found


def kind_of(mode: int) -> Kind:
    """The kind that a mode says."""
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISDIR(mode):
        return Kind.DIRECTORY
    return Kind.SYMLINK if stat.S_ISLNK(mode) else Kind.OTHER


_TYPE_LETTERS = {
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "L",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "S",
    stat.S_IFBLK: "D",
    stat.S_IFCHR: "Dc",
}


def letters(mode: int) -> str:
    """A mode in the letters that clients know: type, ``u`` ``g`` ``t`` when set, ``-`` when none; then rwx thrice."""
    kind = _TYPE_LETTERS.get(stat.S_IFMT(mode), "")
    for bit, letter in ((stat.S_ISUID, "u"), (stat.S_ISGID, "g"), (stat.S_ISVTX, "t")):
        kind += letter if mode & bit else ""
    return (kind or "-") + stat.filemode(mode & 0o777)[1:]


def _walk(path: str, depth: int, limit: int, names: Names, found: list[Entry]) -> None:
    with os.scandir(path) as directory:
        children = sorted(child.path for child in directory)
    for below in children:
        try:
            entry = describe(below, names)
        except OSError:
            continue
        if len(found) >= limit:
            raise OverflowError
        found.append(entry)
        if depth > 1 and entry.kind is Kind.DIRECTORY and entry.link_target is None:
            try:
                _walk(below, depth - 1, limit, names, found)
            except OSError:
                continue


def _by_number(path: Path) -> dict[int, str]:
    """Name by number of passwd(5) or group(5), which both begin with name, password, number; the first name counts."""
    names: dict[int, str] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return names
    for line in lines:
        fields = line.split(":")
        if len(fields) > 3 and fields[2].isdecimal():
            names.setdefault(int(fields[2]), fields[0])
    return names
