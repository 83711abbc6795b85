from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from wrenn_sandbox.controlplane.http.bodies import ByteStream, FileForm, body_of
from wrenn_sandbox.core.errors import Canceled, Invalid

NAME = '; filename="f"'


def request(chunks: list[bytes | None], content_type: str = "multipart/form-data; boundary=b") -> Request:
    """A request whose body comes in these chunks; None is a client that leaves."""
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        chunk = left.pop(0) if left else b""
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}
    return Request(scope, receive)


def form(*parts: tuple[str, bytes, str]) -> bytes:
    body = b""
    for name, value, extra in parts:
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"
    return body + b"--b--\r\n"


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[i : i + size] for i in range(0, len(body), size)]


async def read(chunks: list[bytes | None]) -> tuple[dict[str, str], bytes]:
    parts = FileForm(request(chunks))
    fields = await parts.fields()
    return fields, b"".join([chunk async for chunk in parts.content()])


@given(content=st.binary(max_size=200), size=st.integers(1, 60), after=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_form_is_the_same_however_it_is_cut(content: bytes, size: int, after: bool) -> None:
    parts = [("path", b"/a b", ""), ("user", b"u", ""), ("file", content, NAME)]
    body = form(*parts, *([("late", b"x", "")] if after else []))
    assert asyncio.run(read(cut(body, size))) == ({"path": "/a b", "user": "u"}, content)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_field_after_the_file_does_not_count_however_it_is_cut(size: int) -> None:
    body = form(("file", b"x", NAME), ("path", b"/late", ""))
    assert asyncio.run(read(cut(body, size))) == ({}, b"x")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form",
        form(("path", b"/a", "")),
        form(("path", b"/a", ""), ("file", b"x", NAME))[:-3],
        form(("path", b"/a", ""), ("file", b"x" * 100, NAME))[:-60],
        form(("file", b"x", NAME), ("file", b"y", NAME)),
        form(*[("a", b"", "")] * 33, ("file", b"x", NAME)),
        form(("a", b"x" * 70_000, ""), ("file", b"x", NAME)),
        form(("a", b"x", "; x=" + "y" * 10_000), ("file", b"x", NAME)),
        form(("a", b"x", "\r\nX-More: 1" * 20), ("file", b"x", NAME)),
    ],
)
@pytest.mark.parametrize("size", [5, 100_000])
def test_broken_forms_are_invalid(body: bytes, size: int) -> None:
    with pytest.raises(Invalid):
        asyncio.run(read(cut(body, size)))


@pytest.mark.parametrize("content_type", ["", "text/plain", "multipart/form-data", "multipart/mixed; boundary=b"])
def test_other_types_are_invalid(content_type: str) -> None:
    with pytest.raises(Invalid):
        FileForm(request([b""], content_type))


def test_a_client_that_leaves_is_no_end_of_the_body() -> None:
    async def main() -> None:
        assert [chunk async for chunk in body_of(request([b"a", b"", b"b"]))] == [b"a", b"b"]
        with pytest.raises(Canceled):
            async for _ in body_of(request([b"a", None])):
                pass

    asyncio.run(main())


def stream(*, leave: bool, fail: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """What is sent, and whether the content was closed."""
    sent: list[dict[str, Any]] = []
    closed: list[str] = []

    async def content() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            if leave:
                await asyncio.Event().wait()
            if fail:
                raise ValueError("mine")
            yield b"b"
        finally:
            closed.append("yes")

    async def receive() -> dict[str, Any]:
        if not leave:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        await asyncio.sleep(0)

    try:
        asyncio.run(ByteStream(content())({"type": "http"}, receive, send))
    except ValueError:
        closed.append("raised")
    return sent, closed


def test_an_answer_ends_politely_only_when_it_is_whole() -> None:
    sent, closed = stream(leave=False)
    assert [m.get("body") for m in sent[1:]] == [b"a", b"b", b""] and closed == ["yes"]
    assert sent[-1]["more_body"] is False
    sent, closed = stream(leave=False, fail=True)
    assert sent[-1]["more_body"] is True and closed == ["yes", "raised"]
    assert b"content-length" not in dict(sent[0]["headers"])


def test_a_client_that_leaves_closes_the_content() -> None:
    sent, closed = stream(leave=True)
    assert closed == ["yes"] and all(m.get("more_body", True) for m in sent)
