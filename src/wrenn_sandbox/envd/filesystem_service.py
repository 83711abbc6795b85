"""``filesystem.Filesystem`` of the wire, with the rights of the user whom the request names.

What watches directories is not there yet and answers ``unimplemented``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf.wkt import Timestamp

from wrenn_sandbox.core.errors import AlreadyExists, Conflict, Exhausted, Invalid, WrennError, connect_code
from wrenn_sandbox.envd.entries import Entry, Names, describe, walk
from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.regular import make_directories, translate
from wrenn_sandbox.envd.users import User, basic_username, resolve_user
from wrenn_sandbox.rpc.gen.envd import filesystem_pb as wire
from wrenn_sandbox.rpc.gen.envd.filesystem_connect import Filesystem

if TYPE_CHECKING:
    from connectrpc.request import Headers, RequestContext

T = TypeVar("T")

#: One answer is one message; a bigger tree is listed directory by directory.
MAX_ENTRIES = 50_000

StatContext: TypeAlias = "RequestContext[wire.StatRequest, wire.StatResponse]"
MakeDirContext: TypeAlias = "RequestContext[wire.MakeDirRequest, wire.MakeDirResponse]"
MoveContext: TypeAlias = "RequestContext[wire.MoveRequest, wire.MoveResponse]"
ListDirContext: TypeAlias = "RequestContext[wire.ListDirRequest, wire.ListDirResponse]"
RemoveContext: TypeAlias = "RequestContext[wire.RemoveRequest, wire.RemoveResponse]"


class FilesystemService(Filesystem):
    """Implements the generated protocol; what is missing answers ``unimplemented``."""

    def __init__(self, access: FileAccess) -> None:
        self._access = access

    async def stat(self, request: wire.StatRequest, ctx: StatContext, /) -> wire.StatResponse:
        """What is at a path; ``not_found`` when nothing is."""
        user, path = self._named(ctx.request_headers, request.path)
        return wire.StatResponse(entry=to_wire(await self._run(user, path, partial(stat_path, path))))

    async def make_dir(self, request: wire.MakeDirRequest, ctx: MakeDirContext, /) -> wire.MakeDirResponse:
        """A new directory and its parents, owned by the user; ``already_exists`` when it is there."""
        user, path = self._named(ctx.request_headers, request.path)
        return wire.MakeDirResponse(entry=to_wire(await self._run(user, path, partial(make_directory, path, user))))

    async def move(self, request: wire.MoveRequest, ctx: MoveContext, /) -> wire.MoveResponse:
        """A new name for a file or tree; an existing file gives way, missing parents are made."""
        user, source = self._named(ctx.request_headers, request.source)
        destination = self._access.path(request.destination, user)
        entry = await self._run(user, source, partial(move_path, source, destination, user))
        return wire.MoveResponse(entry=to_wire(entry))

    async def list_dir(self, request: wire.ListDirRequest, ctx: ListDirContext, /) -> wire.ListDirResponse:
        """What is in a directory, ``depth`` levels deep."""
        user, path = self._named(ctx.request_headers, request.path)
        entries = await self._run(user, path, partial(list_directory, path, max(1, request.depth)))
        return wire.ListDirResponse(entries=[to_wire(entry) for entry in entries])

    async def remove(self, request: wire.RemoveRequest, ctx: RemoveContext, /) -> wire.RemoveResponse:
        """Take away a file or a whole tree; nothing there is fine too."""
        user, path = self._named(ctx.request_headers, request.path)
        await self._run(user, path, partial(remove_path, path))
        return wire.RemoveResponse()

    def _named(self, headers: Headers, text: str) -> tuple[User, str]:
        user = resolve_user(basic_username(headers.get("authorization")) or self._access.context.default_user)
        with _told_to_connect():
            return user, self._access.path(text, user)

    async def _run(self, user: User, path: str, call: Callable[[], T]) -> T:
        with _told_to_connect():
            try:
                return await self._access.threads.run(user, call)
            except OSError as error:
                raise _translate(error, path) from error


def stat_path(path: str) -> Entry:
    """The entry at ``path``; raises OSError."""
    return describe(path, Names.read())


def make_directory(path: str, user: User) -> Entry:
    """Make a directory; raises AlreadyExists, Invalid, OSError."""
    try:
        made = make_directories(Path(path), user)
    except NotADirectoryError as error:
        raise Invalid(f"path '{path}' cannot be a directory: a file is in its place", slug="not_directory") from error
    if not made:
        raise AlreadyExists(f"directory '{path}' exists already")
    return stat_path(path)


def move_path(source: str, destination: str, user: User) -> Entry:
    """Rename, or copy and remove between file systems; raises Conflict, OSError."""
    Path(source).lstat()
    try:
        make_directories(Path(destination).parent, user)
    except NotADirectoryError as error:
        raise Invalid(f"'{destination}' cannot be made: a part of it is a file", slug="invalid_path") from error
    try:
        Path(source).rename(destination)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR}:
            raise Conflict(f"'{destination}' is in the way; remove it first", slug="destination_exists") from error
        if error.errno != errno.EXDEV:
            raise
        shutil.move(source, destination)
    return stat_path(destination)


def list_directory(path: str, depth: int) -> list[Entry]:
    """The entries of a directory; raises Invalid, Conflict, Exhausted, OSError."""
    try:
        return walk(path, depth, MAX_ENTRIES, Names.read())
    except NotADirectoryError as error:
        if os.path.lexists(path):
            raise Invalid(f"path '{path}' is not a directory", slug="not_directory") from error
        raise
    except OverflowError as error:
        raise Exhausted(
            f"There are more than {MAX_ENTRIES} entries below '{path}'; list it with a smaller depth.",
            slug="too_many_entries",
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Conflict(f"path '{path}' is a loop of symbolic links", slug="symlink_loop") from error
        raise


def remove_path(path: str) -> None:
    """Remove a file, a link or a tree; raises Invalid, OSError."""
    if path == "/":
        raise Invalid("The root directory cannot be removed.", slug="invalid_path")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if stat.S_ISDIR(Path(path).lstat().st_mode):
            shutil.rmtree(path)
        else:
            Path(path).unlink()


def to_wire(entry: Entry) -> wire.EntryInfo:
    """The message for an entry; names that are not UTF-8 get replacement characters."""
    seconds, nanos = divmod(entry.modified_ns, 10**9)
    info = wire.EntryInfo(
        name=_text(entry.name),
        type=wire.FileType(entry.kind.value),
        path=_text(entry.path),
        size=entry.size,
        mode=entry.mode & 0o777,
        permissions=entry.permissions,
        owner=entry.owner,
        group=entry.group,
        modified_time=Timestamp(seconds=seconds, nanos=nanos),
        metadata=entry.metadata,
    )
    if entry.link_target is not None:
        info.symlink_target = _text(entry.link_target)
    return info


def _translate(error: OSError, path: str) -> WrennError:
    return translate(error, error.filename if isinstance(error.filename, str) else path)


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextlib.contextmanager
def _told_to_connect() -> Iterator[None]:
    """Our errors as Connect's; theirs pass."""
    try:
        yield
    except WrennError as error:
        raise ConnectError(Code(connect_code(error)), error.message) from error
