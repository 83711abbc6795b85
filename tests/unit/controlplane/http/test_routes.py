"""The authorisation table: every route is in it, and what it says holds."""

from __future__ import annotations

import asyncio

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from wrenn_sandbox.controlplane.http.auth import Access
from wrenn_sandbox.controlplane.http.routes import CAPSULES, HTTP, LIVE, SANDBOXES

#: Documents about the API, which say nothing about anybody.
DOCUMENTS = {"/openapi.json", "/docs"}
ZERO = "sb-00000000-0000-4000-8000-000000000000"


def filled(path: str) -> str:
    return (
        path.replace("{sandbox_id}", ZERO)
        .replace("{selector}", "1")
        .replace("{key_id}", "key-1")
        .replace("{name}", "x")
    )


def twice(path: str) -> set[str]:
    both = {path, CAPSULES + path.removeprefix(SANDBOXES)}
    return both if path.startswith(SANDBOXES) else {path}


def test_every_route_is_in_the_table(bare) -> None:
    served, sockets, others = set(), set(), set()
    for route in bare.routes:
        if isinstance(route, APIWebSocketRoute):
            sockets.add(route.path)
        elif isinstance(route, APIRoute):
            served |= {(method, route.path) for method in route.methods}
        else:
            others.add(route.path)  # type: ignore[attr-defined]
    assert served == {(e.method, path) for e in HTTP for path in twice(e.path)}
    assert sockets == {path for e in LIVE for path in twice(e.path)}
    assert others == DOCUMENTS


def test_only_health_is_open() -> None:
    assert {(e.method, e.path) for e in HTTP if e.access is Access.OPEN} == {("GET", "/health")}


def test_every_endpoint_wants_what_the_table_says(api) -> None:
    async def main() -> None:
        async with api() as (_, client):
            for endpoint in HTTP:
                for path in twice(endpoint.path):
                    answer = await client.request(endpoint.method, filled(path), headers={"X-API-Key": ""})
                    wanted = 200 if endpoint.access is Access.OPEN else 401
                    assert answer.status_code == wanted, (endpoint.method, path, answer.text)
                    if wanted == 401:
                        assert answer.json()["error"]["code"] == "unauthorized"
                        assert answer.headers["www-authenticate"]

    asyncio.run(main())


@pytest.mark.parametrize("live", LIVE, ids=lambda e: e.path)
def test_every_socket_wants_a_key_first(live, bare) -> None:
    assert live.access is Access.TEAM_KEY_OR_FIRST_MESSAGE
    for path in twice(live.path):
        with TestClient(bare).websocket_connect(filled(path)) as socket:
            socket.send_json({"type": "start", "cmd": "true"})
            assert socket.receive_json()["code"] == "unauthorized"
            with pytest.raises(WebSocketDisconnect) as caught:
                socket.receive_json()
            assert caught.value.code == 4401


def test_handlers_and_operations_have_names_of_their_own() -> None:
    names = [endpoint.handler.__name__ for endpoint in HTTP]
    assert len(names) == len(set(names))
    assert all(endpoint.handler.__doc__ for endpoint in HTTP) and all(live.handler.__doc__ for live in LIVE)
