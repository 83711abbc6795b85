from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.envd.asgi import Answer, call
from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.envd import download
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.download import TruncatedFile, disposition, get_file
from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.http import Event, Header, Receive, Request, Scope, Send
from wrenn_sandbox.envd.rights import FileThreads

BIG = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PIECE_BYTES", 4096)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    access = FileAccess(GuestContext(default_user="root"), FileThreads(1))
    try:
        await get_file(access, request, request.query())
    except WrennError as error:
        await request.respond_error(error)


def get(path: object, headers: Sequence[Header] = ()) -> Answer:
    return asyncio.run(call(application, "GET", f"/files?username=root&path={path}", headers=headers))


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(BIG)
    return path


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8192, 10240])
def test_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(BIG[:size])
    answer = get(path)
    assert (answer.status, answer.body) == (200, BIG[:size])
    assert answer.headers["content-length"] == str(size)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'inline; filename="f"'
    assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("size", [1, 4097, 10240])
def test_gzip(tmp_path: Path, size: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(BIG[:size])
    answer = get(path, [(b"accept-encoding", b"gzip")])
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(answer.body) == BIG[:size]
    assert answer.headers["etag"].startswith('W/"')
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    answer = get(empty, [(b"accept-encoding", b"gzip")])
    assert (answer.headers["content-length"], "content-encoding" in answer.headers) == ("0", False)


@pytest.mark.parametrize(("text", "start", "end"), [("0-0", 0, 1), ("100-5000", 100, 5001), ("-300", 9940, 10240)])
def test_ranges(big: Path, text: str, start: int, end: int) -> None:
    answer = get(big, [(b"range", f"bytes={text}".encode()), (b"accept-encoding", b"gzip")])
    assert (answer.status, answer.body) == (206, BIG[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/10240"
    assert answer.headers["content-length"] == str(end - start)


def test_ranges_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    answer = get(path, [(b"range", b"bytes=2-4")])
    assert (answer.status, answer.body) == (206, b"234")


def test_outside_the_file(big: Path) -> None:
    answer = get(big, [(b"range", b"bytes=10240-")])
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */10240")
    assert answer.json()["code"] == 416


def test_conditions(big: Path) -> None:
    first = get(big)
    again = get(big, [(b"if-none-match", first.headers["etag"].encode())])
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert get(big, [(b"if-modified-since", first.headers["last-modified"].encode())]).status == 304
    assert get(big, [(b"if-match", b'"other"')]).status == 412
    assert get(big, [(b"accept-encoding", b"identity;q=0")]).status == 406
    os.utime(big, (1, 1))
    assert get(big, [(b"if-none-match", first.headers["etag"].encode())]).status == 200


def test_refusals(tmp_path: Path) -> None:
    assert get(tmp_path).status == 400
    assert get("/dev/zero").status == 400
    assert get(tmp_path / "missing").status == 404
    assert get("/a%00b").status == 400
    assert asyncio.run(call(application, "GET", "/files?username=nobody-knows&path=/etc")).status == 401


def test_a_file_of_proc_has_its_content() -> None:
    answer = get("/proc/self/status")
    assert answer.body.startswith(b"Name:")
    assert answer.headers["content-length"] == str(len(answer.body))


def test_a_long_file_of_proc_is_read_to_its_end() -> None:
    answer = get("/proc/self/smaps")
    assert len(answer.body) > 4096
    assert "content-length" not in answer.headers
    assert b"VmFlags" in answer.body[-200:]


async def run_with(path: Path, on_body: object) -> list[Event]:
    """A download during which ``on_body`` is called with each piece; returns what was sent."""
    sent: list[Event] = []
    gone = asyncio.Event()
    asked: list[Event] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Event:
        if asked:
            return asked.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(event: Event) -> None:
        sent.append(event)
        if event["type"] == "http.response.body":
            on_body(gone)  # type: ignore[operator]
            for _ in range(5):
                await asyncio.sleep(0)

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/files",
        "query_string": f"username=root&path={path}".encode(),
        "headers": [],
    }
    await application(scope, receive, send)
    return sent


def test_a_client_that_leaves_is_not_sent_the_rest(big: Path) -> None:
    sent = asyncio.run(run_with(big, lambda gone: gone.set()))
    assert sum(len(event.get("body", b"")) for event in sent) == 4096


def test_a_file_that_shrinks_breaks_the_connection(big: Path) -> None:
    def shrink(_: asyncio.Event) -> None:
        os.truncate(big, 4096)

    with pytest.raises((TruncatedFile, ExceptionGroup)) as caught:
        asyncio.run(run_with(big, shrink))
    assert "ended" in repr(caught.value)


def test_of_a_file_that_grows_what_there_was_is_sent(big: Path) -> None:
    def grow(_: asyncio.Event) -> None:
        with big.open("ab") as file:
            file.write(b"more")

    sent = asyncio.run(run_with(big, grow))
    assert b"".join(event.get("body", b"") for event in sent) == BIG


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a b.txt", b'inline; filename="a b.txt"'),
        ('q"b\\c', b'inline; filename="q\\"b\\\\c"'),
        ("ä", b"inline; filename*=UTF-8''%C3%A4"),
        ("\udcff", b"inline; filename*=UTF-8''%FF"),
        ("a\r\nb", b"inline; filename*=UTF-8''a%0D%0Ab"),
    ],
)
def test_disposition(name: str, header: bytes) -> None:
    assert disposition(name) == header
