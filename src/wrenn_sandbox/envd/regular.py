"""Opening regular files, and only those, for reading and writing in place.

A path is opened with O_PATH first, which has no effect on devices, FIFOs and sockets (open(2)); what it turned out to
be is looked at through that descriptor, and the same object is then opened through /proc/self/fd. So nothing can be
put in its place in between.

Everything here blocks and is called on a ``FileThreads`` thread that has the user's rights.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from wrenn_sandbox.core.errors import (
    Bug,
    Conflict,
    Denied,
    Exhausted,
    Invalid,
    NoSpace,
    NotFound,
    TooLarge,
    WrennError,
)
from wrenn_sandbox.envd.users import User

#: New files and directories; envd's umask is 022.
FILE_MODE, DIRECTORY_MODE = 0o666, 0o755

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(slots=True)
class Source:
    """A file open for reading. ``head`` is its beginning, ``whole`` says that there is nothing after it."""

    file: FileIO
    status: os.stat_result
    head: bytes
    whole: bool


@dataclass(slots=True)
class Target:
    """A file open for writing, empty. ``created`` says that it was not there before."""

    file: FileIO
    path: str
    created: bool


def open_source(path: str, head_size: int) -> Source:
    """Open a regular file and read its first ``head_size`` bytes. Raises Invalid, NotFound, Denied.

    Files of /proc say that they are empty and files of /sys that they are a page long; what counts is what comes out.
    """
    try:
        file = FileIO(_open_regular(path, _READ), "rb")
        head = _read_up_to(file, head_size)
        return Source(file, os.fstat(file.fileno()), head, whole=len(head) < head_size)
    except OSError as error:
        raise translate(error, path) from error


def read_at(file: FileIO, size: int, offset: int) -> bytes:
    """Up to ``size`` bytes at ``offset``; empty at the end, and where a special file has no more for now."""
    try:
        return os.pread(file.fileno(), size, offset)
    except BlockingIOError:
        return b""


def open_target(path: str, user: User) -> Target:
    """Open a regular file for writing in place, emptied, or make it and its parents, all owned by ``user``.

    Raises PermissionError, untranslated, only when the file would have to be *made* where ``user`` may not.
    """
    try:
        descriptor = _open_regular(path, _WRITE | os.O_TRUNC)
    except FileNotFoundError:
        return _create(path, user)
    except PermissionError as error:
        if not _may_be_missing(path):
            raise translate(error, path, writing=True) from error
        raise
    except OSError as error:
        raise translate(error, path, writing=True) from error
    with contextlib.suppress(PermissionError):  # somebody else's file that this user may write
        os.fchown(descriptor, user.uid, user.gid)
    return Target(FileIO(descriptor, "wb"), path, created=False)


def create_as_root(path: str, user: User) -> Target:
    """Make a *new* file, and its parents, for ``user`` in a directory that only root may write.

    Clients write to paths like ``/data/x`` as ``user`` and expect to own the result. No symbolic link is followed on
    the way and nothing that exists is touched, so that nobody in the guest can turn this against a file of root's.
    """
    directory, created = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), -1
    *parents, name = path.strip("/").split("/")
    try:
        for parent in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, DIRECTORY_MODE, dir_fd=directory)
                os.chown(parent, user.uid, user.gid, dir_fd=directory, follow_symlinks=False)
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(parent, flags, dir_fd=directory)
            os.close(directory)
            directory = below
        flags = _WRITE | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        created = os.open(name, flags, FILE_MODE, dir_fd=directory)
        os.fchown(created, user.uid, user.gid)
        return Target(FileIO(created, "wb"), path, created=True)
    except FileExistsError as error:
        raise Denied(f"{user.name} may not write '{path}'.", slug="permission_denied") from error
    except OSError as error:
        raise translate(error, path, writing=True) from error
    finally:
        os.close(directory)


def write_all(file: FileIO, pieces: list[bytes], path: str) -> None:
    """Write the pieces in order with as few calls as possible."""
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) or 0 :]
    except OSError as error:
        raise translate(error, path, writing=True) from error


def discard(target: Target) -> None:
    """Take away a file that was made for an upload that failed, if its name still leads to it."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(target.path), os.fstat(target.file.fileno())):
            Path(target.path).unlink()


def make_directories(path: Path, user: User) -> bool:
    """Make ``path`` and its parents, those that are new owned by ``user``; False when it was there. Raises OSError."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            directory.mkdir(DIRECTORY_MODE)
        except FileExistsError:
            if not directory.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory)) from None
            continue
        os.chown(directory, user.uid, user.gid, follow_symlinks=False)
    return bool(missing)


def check_regular(status: os.stat_result, path: str) -> None:
    """Raise Invalid for anything but a regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise Invalid(f"path '{path}' is a directory", slug="is_directory")
    if not stat.S_ISREG(status.st_mode):
        raise Invalid(f"path '{path}' is not a regular file", slug="not_regular")


def translate(error: OSError, path: str, *, writing: bool = False) -> WrennError:
    """The error a caller gets for what the kernel said about ``path``."""
    reason = os.strerror(error.errno or 0)
    match error.errno:
        case errno.ENOENT:
            return NotFound(f"path '{path}' does not exist")
        case errno.ENOTDIR if not writing:
            return NotFound(f"path '{path}' does not exist: a part of it is not a directory")
        case errno.EISDIR:
            return Invalid(f"path '{path}' is a directory", slug="is_directory")
        case errno.ENOTDIR | errno.ELOOP | errno.ENAMETOOLONG | errno.EINVAL | errno.ENXIO:
            return Invalid(f"path '{path}' cannot be used: {reason}", slug="invalid_path")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return Denied(f"path '{path}': {reason}", slug="permission_denied")
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpace(f"There is not enough space in the sandbox to write '{path}'; free some first.")
        case errno.EFBIG:
            return TooLarge(f"'{path}' would be larger than its file system allows.")
        case errno.ETXTBSY | errno.EBUSY:
            return Conflict(f"path '{path}' is in use: {reason}", slug="file_busy")
        case errno.EMFILE | errno.ENFILE | errno.ENOMEM:
            return Exhausted(f"The sandbox is out of memory or open files: {reason}", slug="guest_exhausted")
        case _:
            return Bug(f"path '{path}': {reason}", slug="io_error")


def _open_regular(path: str, flags: int) -> int:
    probe = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        check_regular(os.fstat(probe), path)
        return os.open(f"/proc/self/fd/{probe}", flags)
    finally:
        os.close(probe)


def _create(path: str, user: User) -> Target:
    try:
        make_directories(Path(path).parent, user)
        try:
            descriptor = os.open(path, _WRITE | os.O_CREAT | os.O_EXCL, FILE_MODE)
        except FileExistsError:  # a link that leads nowhere yet, or somebody was faster
            descriptor = os.open(path, _WRITE | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        file = FileIO(descriptor, "wb")
        check_regular(os.fstat(descriptor), path)
        os.fchown(descriptor, user.uid, user.gid)
    except PermissionError:
        raise
    except OSError as error:
        raise translate(error, path, writing=True) from error
    return Target(file, path, created=True)


def _may_be_missing(path: str) -> bool:
    """Whether the path is not there as far as this user can see."""
    try:
        os.lstat(path)
    except OSError:
        return True
    return False


def _read_up_to(file: FileIO, size: int) -> bytes:
    pieces, total = [], 0
    while total < size:
        piece = read_at(file, size - total, total)
        if not piece:
            break
        pieces.append(piece)
        total += len(piece)
    return b"".join(pieces)
