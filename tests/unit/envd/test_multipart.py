from __future__ import annotations

import pytest

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.envd.multipart import Form, PartBegin, PartData, PartEnd, parse_parameters

BODY = (
    b'--XX\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    b'--XX\r\nContent-Type: text/plain\r\ncontent-disposition: form-data; name="file"; filename="/a/b c.txt"\r\n\r\n'
    b"one\r\n--X two\r\n\r\n--XX\r\n"
    b'Content-Disposition: form-data; name="file"; filename="empty"\r\n\r\n\r\n--XX--\r\n'
)
EXPECTED = [("note", None, b"hello"), ("file", "/a/b c.txt", b"one\r\n--X two\r\n"), ("file", "empty", b"")]


def read(body: bytes, size: int, boundary: str = "XX") -> tuple[list[tuple[str, str | None, bytes]], bool]:
    form, parts = Form(boundary), []
    for start in range(0, len(body), size):
        for event in form.feed(body[start : start + size]):
            match event:
                case PartBegin(name=name, filename=filename):
                    parts.append([name, filename, b""])
                case PartData(data=data):
                    parts[-1][2] += data
                case PartEnd():
                    parts[-1] = tuple(parts[-1])
    return parts, form.complete


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_pieces_of_any_size_give_the_same_parts(size: int) -> None:
    assert read(BODY, size) == (EXPECTED, True)


def test_a_form_that_ends_early_is_not_complete() -> None:
    assert not read(BODY[:-6], 64)[1]


@pytest.mark.parametrize("body", [b"hello", b"--YY\r\n\r\n", b"--XX\r\nno colon here\r\n\r\n"])
def test_what_is_not_a_form_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        read(body, 64)
    assert caught.value.slug == "invalid_form"


def test_headers_are_bounded() -> None:
    with pytest.raises(Invalid):
        read(b"--XX\r\nContent-Disposition: " + b"x" * 20_000, 4096)


@pytest.mark.parametrize("boundary", ["", "b" * 300])
def test_bad_boundaries(boundary: str) -> None:
    with pytest.raises(Invalid):
        Form(boundary)


@pytest.mark.parametrize(
    ("header", "value", "parameters"),
    [
        (b"multipart/form-data; boundary=abc", "multipart/form-data", {"boundary": "abc"}),
        (b'Multipart/Form-Data ; Boundary="a b;c"', "multipart/form-data", {"boundary": "a b;c"}),
        (b"application/octet-stream", "application/octet-stream", {}),
        (b"", "", {}),
        (rb'form-data; name="a\"b\\c"', "form-data", {"name": 'a"b\\c'}),
        ('form-data; filename="ä.txt"'.encode(), "form-data", {"filename": "ä.txt"}),
        (b'form-data; filename="\xff"', "form-data", {"filename": "\udcff"}),
        (b"form-data; filename=\"x\"; filename*=UTF-8''%E2%82%AC%20a", "form-data", {"filename": "€ a"}),
        (b'form-data; filename="x"; filename*=broken', "form-data", {"filename": "x"}),
        (rb'form-data; filename="C:\dir\x"', "form-data", {"filename": r"C:\dir\x"}),
    ],
)
def test_parameters(header: bytes, value: str, parameters: dict[str, str]) -> None:
    assert parse_parameters(header) == (value, parameters)
