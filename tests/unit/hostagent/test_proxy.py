from __future__ import annotations

import json
from types import SimpleNamespace
from uuid import UUID

import pytest

from wrenn_sandbox.core.errors import Conflict, Denied, Invalid, NotFound, Unavailable, WrennError
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.hostagent import proxy
from wrenn_sandbox.rpc.relay import DialFailed, UpstreamBroken

ID = SandboxId(UUID("11111111-2222-4333-8444-555555555555"))


@pytest.mark.parametrize(
    ("rest", "port", "path"),
    [("8080/", 8080, b"/"), ("1", 1, b"/"), ("65535/a%2Fb//c", 65535, b"/a%2Fb//c")],
)
def test_targets(rest: str, port: int, path: bytes) -> None:
    assert proxy.target(f"/proxy/{ID}/{rest}".encode()) == (ID, port, path)


@pytest.mark.parametrize(
    ("raw", "kind", "slug"),
    [
        (f"/proxy/{ID}/49983/files", Denied, "port_reserved"),
        (f"/proxy/{ID}/0/", Invalid, "invalid_port"),
        (f"/proxy/{ID}/65536/", Invalid, "invalid_port"),
        (f"/proxy/{ID}/http/", Invalid, "invalid_proxy_path"),
        (f"/proxy/{ID}", Invalid, "invalid_proxy_path"),
        ("/proxy/sb-nope/80/", Invalid, "invalid_id"),
    ],
)
def test_targets_that_are_refused(raw: str, kind: type[WrennError], slug: str) -> None:
    with pytest.raises(kind) as refused:
        proxy.target(raw.encode())
    assert refused.value.slug == slug


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (NotFound("x", slug="sandbox_not_found"), 502, "The sandbox was not found"),
        (Conflict("x", slug="invalid_state"), 502, "The sandbox was not found"),
        (DialFailed("x"), 502, "The sandbox is running but port is not open"),
        (UpstreamBroken("it broke"), 502, "it broke"),
        (Denied("never", slug="port_reserved"), 403, "never"),
        (Invalid("bad"), 400, "bad"),
        (Unavailable("soon", slug="sandbox_pausing", retry_after_s=2), 503, "soon"),
    ],
)
def test_refusals_use_the_words_clients_look_for(error: WrennError, status: int, message: str) -> None:
    found, body = proxy.refusal(f"/proxy/{ID}/8080/x".encode(), error)
    assert found == status
    assert body == {
        "sandboxId": str(ID),
        "port": 8080,
        "message": message,
        "code": status,
        "error_code": error.slug,
    }
    json.dumps(body)


def test_a_path_that_names_nothing_gets_an_answer_too() -> None:
    assert proxy.refusal(b"/proxy/", Invalid("bad"))[1] == {
        "message": "bad",
        "code": 400,
        "error_code": "invalid_request",
    }


def test_the_clients_own_authorization_comes_back() -> None:
    scope = {"headers": [(b"authorization", b"Bearer agent"), (b"x-wrenn-forwarded-authorization", b"Basic abc")]}
    assert proxy._given_back(scope) == [("authorization", "Basic abc")]


def test_while_a_sandbox_is_being_paused_callers_are_told_to_come_back(run) -> None:
    async def work() -> None:
        sent: list[dict] = []

        async def send(message) -> None:
            sent.append(message)

        registry = SimpleNamespace(get=lambda _: SimpleNamespace(state=State.PAUSING))
        scope = {"type": "http", "raw_path": f"/proxy/{ID}/8080/x".encode(), "headers": []}
        await proxy.Proxy(registry)(scope, None, send)
        assert sent[0]["status"] == 503 and (b"retry-after", b"2") in sent[0]["headers"]

    run(work)
