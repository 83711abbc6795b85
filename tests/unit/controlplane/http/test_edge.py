from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from wrenn_sandbox.controlplane.http.edge import MAX_BODY_BYTES, Edge


async def echo(scope, receive, send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


def ask(path: str, size: int = 0, request_id: str = "") -> httpx.Response:
    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Edge(echo)), base_url="http://x") as client:
            headers = {"X-Request-Id": request_id} if request_id else {}
            return await client.post(path, content=b"x" * size, headers=headers)

    return asyncio.run(main())


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 64])
def test_a_harmless_request_id_is_kept(given: str) -> None:
    assert ask("/", request_id=given).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "<a>"])
def test_any_other_is_replaced(given: str) -> None:
    assert len(ask("/", request_id=given).headers["x-request-id"]) == 32


def test_bodies_in_memory_have_a_limit() -> None:
    assert ask("/v1/sandboxes", MAX_BODY_BYTES).text == str(MAX_BODY_BYTES)
    with pytest.raises(Exception, match="larger than"):
        ask("/v1/sandboxes", MAX_BODY_BYTES + 1)


@pytest.mark.parametrize("path", ["/v1/sandboxes/x/files", "/v1/capsules/x/files/stream/write"])
def test_files_have_none(path: str) -> None:
    assert ask(path, MAX_BODY_BYTES + 1).text == str(MAX_BODY_BYTES + 1)


@pytest.mark.parametrize("path", ["/v1/sandboxes/x/files/read", "/v1/sandboxes/x/y/files", "/v1/sandboxes/x/filesx"])
def test_what_only_resembles_them_has_one(path: str) -> None:
    with pytest.raises(Exception, match="larger than"):
        ask(path, MAX_BODY_BYTES + 1)
