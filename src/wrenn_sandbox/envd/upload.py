"""POST /files: files into the guest, written in place as they come, with constant memory.

A body is a form with one or several parts named ``file``, or the raw content; either may be compressed with gzip.
Watchers of a directory see exactly create, change of attributes and write for a new small file, so there is no
temporary file and a file is opened, given to its user, and written, in that order.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.envd import metadata as attributes
from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.http import Request
from wrenn_sandbox.envd.multipart import Form, PartBegin, PartData, PartEnd, parse_parameters
from wrenn_sandbox.envd.regular import Target, create_as_root, discard, open_target, translate, write_all
from wrenn_sandbox.envd.users import User

#: Bytes collected before they go to disk in one call, and the most that unpacking yields at a time.
BUFFER_BYTES = 512 << 10
INFLATE_BYTES = 256 << 10
MAX_PARTS = 1024


@dataclass(slots=True)
class Upload:
    """One request's files: where they go and what has been written."""

    access: FileAccess
    user: User
    path: str  # of the query, empty when the parts name theirs
    metadata: dict[str, str]
    written: list[dict[str, object]] = field(default_factory=list)

    async def take(self, name: str) -> Sink:
        """Open the file that the next part goes to."""
        text = self.path or name
        if not text:
            raise Invalid("Say where the file goes: in the query's path or the part's filename.", slug="invalid_path")
        path = self.access.path(text, self.user)
        if any(entry["path"] == path for entry in self.written):
            raise Invalid(
                f"The request has several files for '{path}'; send one path a file."
                if not self.path
                else "The query names one path, but the form has several files; leave path out to use their names.",
                slug="duplicate_path",
            )
        if len(self.written) >= MAX_PARTS:
            raise Invalid(f"A request can write at most {MAX_PARTS} files.", slug="too_many_files")
        sink = Sink(self.access, await self._open(path), self.metadata)
        entry: dict[str, object] = {"path": path, "name": PurePosixPath(path).name, "type": "file"}
        self.written.append(entry | ({"metadata": self.metadata} if self.metadata else {}))
        return sink

    async def _open(self, path: str) -> Target:
        try:
            return await self.access.threads.run(self.user, partial(open_target, path, self.user))
        except PermissionError:
            return await self.access.threads.do(partial(create_as_root, path, self.user))


class Sink:
    """One file being written. As a context it takes away a half-written new file when the block fails."""

    def __init__(self, access: FileAccess, target: Target, metadata: Mapping[str, str]) -> None:
        self._access = access
        self._target = target
        self._metadata = metadata
        self._pieces: list[bytes] = []
        self._size = 0

    async def __aenter__(self) -> Sink:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._target.file:
            if kind is not None and self._target.created:
                discard(self._target)

    async def write(self, data: bytes) -> None:
        """Take the next piece; it reaches the disk when enough has come together."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= BUFFER_BYTES:
            await self._flush()

    async def finish(self) -> None:
        """Write what is left, then the metadata."""
        await self._flush()
        if self._metadata or not self._target.created:
            await self._access.threads.do(self._set_metadata)

    async def _flush(self) -> None:
        pieces, self._pieces, self._size = self._pieces, [], 0
        if pieces:
            await self._access.threads.do(partial(write_all, self._target.file, pieces, self._target.path))

    def _set_metadata(self) -> None:
        try:
            attributes.replace(self._target.file.fileno(), self._metadata, fresh=self._target.created)
        except OSError as error:
            raise translate(error, self._target.path, writing=True) from error


async def post_files(access: FileAccess, request: Request, query: Mapping[str, str]) -> None:
    """Answer POST /files; raises WrennError."""
    metadata = attributes.from_headers(request.scope["headers"])
    upload = Upload(access, access.user(query), query.get("path", ""), metadata)
    if "\0" in upload.path:
        raise Invalid("A path cannot contain a NUL character.", slug="invalid_path")
    kind, parameters = parse_parameters(request.header(b"content-type"))
    async with contextlib.aclosing(unpacked(request)) as body:
        if kind == "multipart/form-data":
            await _take_form(upload, Form(parameters.get("boundary", "")), body)
        elif kind == "application/octet-stream":
            await _take_raw(upload, body)
        else:
            raise Invalid(
                "Send the file as multipart/form-data in a part named 'file', or as application/octet-stream.",
                slug="invalid_content_type",
            )
    await request.respond_json(upload.written)


async def _take_raw(upload: Upload, body: AsyncIterator[bytes]) -> None:
    async with await upload.take("") as sink:
        async for piece in body:
            await sink.write(piece)
        await sink.finish()


async def _take_form(upload: Upload, form: Form, body: AsyncIterator[bytes]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        sink: Sink | None = None
        async for piece in body:
            for event in form.feed(piece):
                match event:
                    case PartBegin(name="file", filename=filename):
                        sink = await stack.enter_async_context(await upload.take(filename or ""))
                    case PartData(data=data) if sink is not None:
                        await sink.write(data)
                    case PartEnd() if sink is not None:
                        await sink.finish()
                        sink = None
                        await stack.pop_all().aclose()  # this file is complete, whatever the next does
        if not form.complete:
            raise Invalid("The form ends before its last boundary; send it whole.", slug="invalid_form")
        if not upload.written:
            raise Invalid("The form has no part named 'file'.", slug="invalid_form")


async def unpacked(request: Request) -> AsyncGenerator[bytes, None]:
    """The request body with its Content-Encoding undone, in pieces of bounded size."""
    coding = request.header(b"content-encoding").strip().lower()
    if coding not in {b"", b"identity", b"gzip", b"x-gzip"}:
        raise Invalid("The body may be compressed with gzip only.", slug="invalid_encoding")
    if coding in {b"", b"identity"}:
        async for chunk in request.chunks():
            yield chunk
        return
    inflater = Inflater()
    async for chunk in request.chunks():
        for piece in inflater.feed(chunk):
            yield piece
    inflater.finish()


class Inflater:
    """gzip (RFC 1952), also of several members, undone in bounded pieces."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._inside = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most INFLATE_BYTES; raises Invalid when the data is not gzip."""
        try:
            more = bool(data)
            while more:
                self._inside = True
                piece = self._member.decompress(data, INFLATE_BYTES)
                if piece:
                    yield piece
                data = self._member.unconsumed_tail
                # A full piece may have left output behind inside zlib even when all input is consumed.
                more = bool(data) or len(piece) == INFLATE_BYTES
                if self._member.eof:
                    data = self._member.unused_data
                    self._member, self._inside, more = zlib.decompressobj(wbits=31), False, bool(data)
        except zlib.error as error:
            raise Invalid(f"The body is not valid gzip: {error}", slug="invalid_encoding") from error

    def finish(self) -> None:
        """Raise Invalid unless the last member is complete."""
        if self._inside:
            raise Invalid("The gzip body ends too early.", slug="invalid_encoding")
