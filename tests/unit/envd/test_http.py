from __future__ import annotations

import asyncio
import json

import pytest

from tests.unit.envd.asgi import call
from wrenn_sandbox.core.errors import Canceled, Denied, Invalid, TooLarge
from wrenn_sandbox.envd.http import Receive, Request, Scope, Send, to_json


def test_query_keeps_file_names_that_are_not_utf8() -> None:
    seen: dict[str, str] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        seen.update(request.query())
        await request.respond(204)

    asyncio.run(call(app, "GET", "/files?path=/a%FF+b&username=&x=1&x=2"))
    assert seen == {"path": "/a\udcff b", "username": "", "x": "2"}


def test_too_many_fields_are_refused() -> None:
    request = Request({"method": "GET", "path": "/", "query_string": b"a=1&" * 100}, None, None)  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        request.query()


def test_body_is_bounded_and_a_lost_client_is_noticed() -> None:
    bodies: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        bodies.append(await Request(scope, receive, send).body(5))

    asyncio.run(call(app, "POST", "/", [b"ab", b"cde"]))
    assert bodies == [b"abcde"]
    with pytest.raises(TooLarge):
        asyncio.run(call(app, "POST", "/", [b"ab", b"cdef"]))
    with pytest.raises(Canceled):
        asyncio.run(call(app, "POST", "/", [b"ab"], leaves=True))


@pytest.mark.parametrize(("path", "code"), [("/files", 403), ("/process.Process/Start", "permission_denied")])
def test_errors_have_the_form_that_the_path_speaks(path: str, code: object) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive, send).respond_error(Denied("No.", slug="nope"))

    answer = asyncio.run(call(app, "POST", path))
    assert answer.status == 403
    assert answer.json() == {"code": code, "message": "No.", "error_code": "nope"}
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_any_origin_may_read_when_it_says_that_it_is_one() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive, send).hand_over(leaf)

    async def leaf(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": False})

    assert "access-control-allow-origin" not in asyncio.run(call(inner, "GET", "/")).headers
    answer = asyncio.run(call(inner, "GET", "/", headers=[(b"origin", b"https://a")]))
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.body == b"x"


def test_json_of_a_name_that_is_not_utf8() -> None:
    assert json.loads(to_json({"path": "/ä\udcff"})) == {"path": "/ä?"}
