"""GET /files: a file out of the guest, streamed with constant memory.

Ranges, conditions and gzip are decided by ``negotiation``; opening is ``regular``'s. A file that fits one piece is read
together with its opening, in one hop to a file thread, and is what its content says it is; of a longer one exactly
the length it had at the start is sent.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import PurePosixPath
from urllib.parse import quote

from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.http import JSON_TYPE, NO_SNIFF, Header, Request, to_json
from wrenn_sandbox.envd.negotiation import Outcome, Plan, Version, http_date, plan
from wrenn_sandbox.envd.regular import Source, open_source, read_at

PIECE_BYTES = 256 << 10
#: Seconds a client may leave the connection full before its download is given up.
SEND_TIMEOUT_S = 640.0
#: The fastest level: a guest may have an emulated CPU, and the way to the client is short.
GZIP_LEVEL = 1

_REASONS = {
    Outcome.NOT_ACCEPTABLE: "None of the encodings in Accept-Encoding can be sent; accept identity or gzip.",
    Outcome.PRECONDITION_FAILED: "The file is not the version that the request names.",
    Outcome.UNSATISFIABLE: "The range lies outside the file.",
}


class TruncatedFile(ConnectionError):
    """The file became shorter than the length already announced: the connection must break."""


async def get_file(access: FileAccess, request: Request, query: Mapping[str, str]) -> None:
    """Answer GET /files; raises WrennError before the answer has begun."""
    user = access.user(query)
    path = access.path(query.get("path", ""), user)
    source = await access.threads.run(user, partial(open_source, path, PIECE_BYTES))
    with source.file:
        version = version_of(source)
        decided = plan(request.header, version)
        headers = answer_headers(path, source, version, decided)
        if decided.outcome in _REASONS:
            await _refuse(request, decided.outcome, headers)
        elif decided.outcome is Outcome.NOT_MODIFIED:
            await request.respond(304, headers)
        elif source.whole:
            await _send_whole(request, source, decided, headers)
        else:
            await _stream(access, request, source, decided, headers)


def version_of(source: Source) -> Version:
    """Size and tags of what will be sent; size 0 stands for "until it ends" when there is more than the head."""
    status = source.status
    size = len(source.head) if source.whole else status.st_size
    return Version(size, f'"{status.st_mtime_ns:x}-{size:x}-{status.st_ino:x}"', status.st_mtime)


def answer_headers(path: str, source: Source, version: Version, decided: Plan) -> list[Header]:
    """All headers but the length of the body."""
    etag = ("W/" if decided.gzip else "") + version.etag
    headers = [
        (b"vary", b"Accept-Encoding"),
        (b"accept-ranges", b"bytes"),
        (b"etag", etag.encode()),
        (b"last-modified", http_date(version.modified_s).encode()),
    ]
    if decided.outcome in {Outcome.WHOLE, Outcome.PART}:
        headers.append((b"content-type", b"application/octet-stream"))
        headers.append((b"content-disposition", disposition(PurePosixPath(path).name)))
    if decided.gzip:
        headers.append((b"content-encoding", b"gzip"))
    if decided.outcome is Outcome.PART:
        last = decided.start + decided.length - 1
        headers.append((b"content-range", b"bytes %d-%d/%d" % (decided.start, last, version.size)))
    if decided.outcome is Outcome.UNSATISFIABLE:
        headers.append((b"content-range", b"bytes */%d" % version.size))
    return headers


def disposition(name: str) -> bytes:
    """``Content-Disposition: inline`` with the file name; RFC 5987 form where ASCII is not enough."""
    if name.isascii() and name.isprintable():
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'inline; filename="{escaped}"'.encode()
    return f"inline; filename*=UTF-8''{quote(name, safe='', errors='surrogateescape')}".encode()


async def _refuse(request: Request, outcome: Outcome, headers: list[Header]) -> None:
    status = HTTPStatus(outcome.value)
    body = {"code": status.value, "message": _REASONS[outcome], "error_code": outcome.name.lower()}
    await request.respond(status.value, [*headers, JSON_TYPE, NO_SNIFF], to_json(body))


async def _send_whole(request: Request, source: Source, decided: Plan, headers: list[Header]) -> None:
    body = source.head[decided.start : decided.start + decided.length]
    if decided.gzip:
        body = zlib.compress(body, GZIP_LEVEL, wbits=31)
    await request.respond(decided.outcome.value, headers, body)


async def _stream(access: FileAccess, request: Request, source: Source, decided: Plan, headers: list[Header]) -> None:
    known = decided.length > 0
    if known and not decided.gzip:
        headers.append((b"content-length", b"%d" % decided.length))
    async with asyncio.TaskGroup() as group:
        with _watch(group, request) as gone:
            await request.start(decided.outcome.value, headers)
            packer = zlib.compressobj(GZIP_LEVEL, wbits=31) if decided.gzip else None
            offset, end = decided.start, decided.start + decided.length
            while not gone.is_set() and (offset < end or not known):
                size = min(PIECE_BYTES, end - offset) if known else PIECE_BYTES
                data, packed = await access.threads.do(partial(_piece, source, size, offset, packer))
                if not data:
                    break
                offset += data
                if packed:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await request.send(packed, more=True)
            if known and offset < end and not gone.is_set():
                raise TruncatedFile(f"the file ended {end - offset} bytes early")
            await request.send(packer.flush() if packer else b"", more=False)


def _piece(source: Source, size: int, offset: int, packer: zlib._Compress | None) -> tuple[int, bytes]:
    data = read_at(source.file, size, offset)
    return len(data), packer.compress(data) if packer else data


@contextmanager
def _watch(group: asyncio.TaskGroup, request: Request) -> Iterator[asyncio.Event]:
    """An event that is set when the client goes away."""
    gone = asyncio.Event()

    async def watch() -> None:
        await request.disconnected()
        gone.set()

    watcher = group.create_task(watch())
    try:
        yield gone
    finally:
        watcher.cancel()
