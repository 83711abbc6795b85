"""Bodies that do not fit into memory: streamed answers, and multipart uploads read as they arrive."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wrenn_sandbox.controlplane.race import first_of
from wrenn_sandbox.core.errors import Canceled, Invalid

_MAX_FIELD_BYTES = 64 * 1024
_MAX_PARTS = 32


class ByteStream(Response):
    """An answer whose body is an async generator, closed whatever happens; a client that leaves ends it at once."""

    media_type = "application/octet-stream"

    def __init__(self, content: AsyncGenerator[bytes, None]) -> None:
        super().__init__(None)
        del self.headers["content-length"]
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. A failure after the first byte breaks the connection off: a short body must not look whole."""
        await first_of(self._send_all(send), _until_gone(receive))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._content) as chunks:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def body_of(request: Request) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises Canceled when the client breaks off."""
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect as error:
        raise Canceled("The client went away in the middle of its upload.") from error


@dataclass(slots=True)
class _Part:
    """One part of a multipart body while it is being read."""

    name: str = ""
    is_file: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    value: bytearray = field(default_factory=bytearray)


class FileForm:
    """A multipart body whose fields come before its one file, which is then read as it arrives.

    ``fields`` gives what precedes the part named ``file``; ``content`` its bytes.
    """

    def __init__(self, request: Request) -> None:
        self._body = body_of(request)
        self._parser = self._new_parser(request.headers.get("content-type", ""))
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._parts = 0
        self._fields: dict[str, str] = {}
        self._before_file: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._in_file = self._file_ended = self._ended = False

    async def fields(self) -> dict[str, str]:
        """The fields before the file. Raises Invalid when there is no file."""
        while not self._in_file and not self._file_ended:
            if not await self._feed():
                raise Invalid("The form has no part named 'file' with a file name.")
        return self._before_file

    async def content(self) -> AsyncIterator[bytes]:
        """The file, after ``fields``. Raises Invalid when the body ends before the form does."""
        while True:
            chunks, self._chunks = self._chunks, []
            for chunk in chunks:
                yield chunk
            if self._file_ended:
                break
            if not await self._feed():
                raise Invalid("The form breaks off in the middle of the file.")
        while await self._feed():
            pass
        if not self._ended:
            raise Invalid("The form breaks off before its last boundary.")

    async def _feed(self) -> bool:
        chunk = await anext(self._body, None)
        if chunk is None:
            return False
        try:
            self._parser.write(chunk)
        except Invalid:
            raise
        except ValueError as error:
            raise Invalid(f"The body is not a valid multipart form: {error}.") from error
        return True

    def _new_parser(self, content_type: str) -> MultipartParser:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Invalid("The body must be multipart/form-data with the fields 'path' and 'file'.")
        return MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise Invalid(f"The form has more than {_MAX_PARTS} parts.")
        self._part = _Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        self._part.headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._part.headers.get("content-disposition", ""))
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        self._part.is_file = self._part.name == "file"
        if self._part.is_file and (self._in_file or self._file_ended):
            raise Invalid("The form has more than one file; send one request for each.")
        if self._part.is_file:
            self._in_file = True
            self._before_file = dict(self._fields)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self._chunks.append(data[start:end])
            return
        self._part.value.extend(data[start:end])
        if len(self._part.value) > _MAX_FIELD_BYTES:
            raise Invalid(f"The field {self._part.name!r} is too long.")

    def _on_part_end(self) -> None:
        if self._part.is_file:
            self._in_file, self._file_ended = False, True
        else:
            self._fields[self._part.name] = self._part.value.decode("utf-8", "replace")

    def _on_end(self) -> None:
        self._ended = True
