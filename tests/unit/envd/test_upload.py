from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.envd.asgi import Answer, call
from wrenn_sandbox.core.errors import Canceled, Invalid, WrennError
from wrenn_sandbox.envd import upload
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.http import Header, Receive, Request, Scope, Send
from wrenn_sandbox.envd.rights import FileThreads
from wrenn_sandbox.envd.upload import Inflater, post_files

RAW = (b"content-type", b"application/octet-stream")
FORM = (b"content-type", b"multipart/form-data; boundary=XX")
GZIP = (b"content-encoding", b"gzip")
CONTENT = os.urandom(1000) * 50


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    access = FileAccess(GuestContext(default_user="root"), FileThreads(1))
    try:
        await post_files(access, request, request.query())
    except Canceled:
        raise
    except WrennError as error:
        await request.respond_error(error)


def post(query: str, body: bytes | Sequence[bytes], headers: Sequence[Header], *, leaves: bool = False) -> Answer:
    return asyncio.run(call(application, "POST", f"/files?username=root&{query}", body, headers, leaves=leaves))


def form(*files: tuple[str, bytes], field: str = "file") -> bytes:
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + b"--XX--\r\n"


def pieces(body: bytes, size: int = 777) -> list[bytes]:
    return [body[i : i + size] for i in range(0, len(body), size)]


def test_raw(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f"
    answer = post(f"path={path}", pieces(CONTENT), [RAW])
    assert answer.json() == [{"path": str(path), "name": "f", "type": "file"}]
    assert path.read_bytes() == CONTENT
    post(f"path={path}", b"short", [RAW])
    assert path.read_bytes() == b"short"
    post(f"path={path}", b"", [RAW])
    assert path.read_bytes() == b""


def test_form_with_a_path(tmp_path: Path) -> None:
    answer = post(f"path={tmp_path}/f", pieces(form(("ignored", CONTENT))), [FORM])
    assert answer.status == 200
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_form_whose_parts_name_their_paths(tmp_path: Path) -> None:
    names = [f"{tmp_path}/a/one", f"{tmp_path}/two", f"{tmp_path}/empty"]
    body = form((names[0], CONTENT), (names[1], b"2"), (names[2], b""))
    answer = post("", pieces(body), [FORM])
    assert [entry["path"] for entry in answer.json()] == names
    assert [Path(name).read_bytes() for name in names] == [CONTENT, b"2", b""]


def test_other_fields_are_passed_over(tmp_path: Path) -> None:
    note = b'--XX\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    assert post("", note + form((f"{tmp_path}/f", b"x")), [FORM]).status == 200
    assert (tmp_path / "f").read_bytes() == b"x"


@pytest.mark.parametrize("members", [1, 3])
def test_compressed(tmp_path: Path, members: int) -> None:
    step = len(CONTENT) // members + 1
    packed = b"".join(gzip.compress(CONTENT[i : i + step]) for i in range(0, len(CONTENT), step))
    assert post(f"path={tmp_path}/f", pieces(packed), [RAW, GZIP]).status == 200
    assert (tmp_path / "f").read_bytes() == CONTENT
    packed = gzip.compress(form((f"{tmp_path}/g", CONTENT)))
    assert post("", pieces(packed), [FORM, GZIP]).status == 200
    assert (tmp_path / "g").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("query", "body", "headers", "slug"),
    [
        ("", b"x", [RAW], "invalid_path"),
        ("path=%00", b"x", [RAW], "invalid_path"),
        ("path={}/f", b"x", [], "invalid_content_type"),
        ("path={}/f", b"x", [(b"content-type", b"text/plain")], "invalid_content_type"),
        ("path={}/f", b"x", [RAW, (b"content-encoding", b"br")], "invalid_encoding"),
        ("path={}/f", b"not gzip", [RAW, GZIP], "invalid_encoding"),
        ("path={}/f", gzip.compress(b"x" * 100)[:-4], [RAW, GZIP], "invalid_encoding"),
        ("", form(("", b"x")), [FORM], "invalid_path"),
        ("", form(("/f", b"x"), field="other"), [FORM], "invalid_form"),
        ("path={}/f", b"--XX\r\nContent-Disposition: form-data; name=file\r\n\r\nhalf", [FORM], "invalid_form"),
        ("path={}/f", b"x", [(b"content-type", b"multipart/form-data")], "invalid_form"),
        ("path={}", b"x", [RAW], "is_directory"),
        ("path=/dev/null", b"x", [RAW], "not_regular"),
        ("path={}/f", b"x", [RAW, (b"x-metadata-k", b"\xc3")], "invalid_metadata"),
    ],
)
def test_refusals(tmp_path: Path, query: str, body: bytes, headers: list[Header], slug: str) -> None:
    answer = post(query.format(tmp_path), body, headers)
    assert (answer.status, answer.json()["error_code"]) == (400, slug)
    assert list(tmp_path.iterdir()) == []


def test_one_path_for_several_files(tmp_path: Path) -> None:
    answer = post(f"path={tmp_path}/f", form(("a", b"1"), ("b", b"2")), [FORM])
    assert (answer.status, answer.json()["error_code"]) == (400, "duplicate_path")
    name = f"{tmp_path}/g"
    answer = post("", form((name, b"1"), (f"{tmp_path}/x/../g", b"2")), [FORM])
    assert (answer.status, answer.json()["error_code"]) == (400, "duplicate_path")
    assert Path(name).read_bytes() == b"1"


def test_a_client_that_leaves_takes_its_new_file_along(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("before")
    for path in (tmp_path / "new", kept):
        with pytest.raises(Canceled):
            post(f"path={path}", [b"half"], [RAW], leaves=True)
    assert not (tmp_path / "new").exists()
    assert kept.exists()


def test_a_small_file_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[bytes]] = []
    write = upload.write_all
    monkeypatch.setattr(
        upload, "write_all", lambda file, pieces, path: (calls.append(pieces), write(file, pieces, path))
    )
    post(f"path={tmp_path}/f", pieces(CONTENT), [RAW])
    assert len(calls) == 1


def test_a_large_file_is_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = upload.write_all

    def note(file: object, pieces: list[bytes], path: str) -> None:
        sizes.append(sum(map(len, pieces)))
        write(file, pieces, path)  # type: ignore[arg-type]

    monkeypatch.setattr(upload, "write_all", note)
    monkeypatch.setattr(upload, "BUFFER_BYTES", 5000)
    post(f"path={tmp_path}/f", pieces(CONTENT), [RAW])
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert max(sizes) < 6000


@pytest.mark.parametrize("limit", [10, 100, 1 << 18])
def test_inflating_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(upload, "INFLATE_BYTES", limit)
    content = b"\0" * 100_000
    for step in (1, 50, 100_000):
        inflater, out = Inflater(), []
        for piece in pieces(gzip.compress(content), step):
            out += list(inflater.feed(piece))
        inflater.finish()
        assert b"".join(out) == content
        assert max(map(len, out)) <= limit


def test_inflating_needs_the_end() -> None:
    inflater = Inflater()
    list(inflater.feed(zlib.compress(b"x", wbits=31)[:-1]))
    with pytest.raises(Invalid):
        inflater.finish()
    Inflater().finish()
