from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.unit.controlplane.usecases.test_find_sandboxes import made, move
from wrenn_sandbox.controlplane import proxy as module
from wrenn_sandbox.controlplane.proxy import Proxy, Refusal, Target, parse, target_of
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.rpc.relay import DialFailed, UpgradeRefused

UUID_TEXT = "123e4567-e89b-42d3-a456-426614174000"
BASE36 = "12vqjrnxk9xeov6o4f05pan0g"


@pytest.mark.parametrize("identity", [f"sb-{UUID_TEXT}", f"cl-{BASE36}", BASE36, UUID_TEXT, f"cl-{UUID_TEXT}"])
@pytest.mark.parametrize("domain", ["sbx.test", "sbx.test:8443", "SBX.test", "localhost", "localhost:80"])
def test_names_of_sandboxes(identity: str, domain: str) -> None:
    target = target_of(f"8080-{identity}.{domain}", "sbx.test:8443")
    assert target == Target("8080", identity)
    assert parse(target) == (SandboxId.parse(f"sb-{UUID_TEXT}"), 8080)


@pytest.mark.parametrize(
    "host",
    [
        *("", "sbx.test", "127.0.0.1:8080", "[::1]", "[::1]:8080", f"8080-{BASE36}", f"8080-{BASE36}.other"),
        *("x-y.sbx.test", f"٣-{BASE36}.sbx.test", f"-{BASE36}.sbx.test", "api.sbx.test", f"80-{BASE36}.a.sbx.test"),
    ],
)
def test_all_other_names_are_the_apis(host: str) -> None:
    assert target_of(host, "sbx.test") is None


@pytest.mark.parametrize(
    "target",
    [Target("0", BASE36), Target("65536", BASE36), Target("9" * 50, BASE36), Target("1", "x"), Target("1", "")],
)
def test_malformed_targets_are_plain_text(target: Target) -> None:
    with pytest.raises(Refusal) as caught:
        parse(target)
    assert caught.value.status == 400 and not caught.value.sandbox


def serve(world, prepare, *, port: str = "80", headers: dict[str, str] | None = None, error: Exception | None = None):
    """The answer to one request, and what was relayed, for a sandbox in the state that ``prepare`` makes."""
    relayed: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    async def relay(scope, receive, send, session, url, **options) -> None:
        relayed.append({"url": url, **options})
        if error is not None:
            raise error

    async def main() -> None:
        async with world() as w:
            row = await made(w)
            await prepare(w, row)
            w.platform.rows.clear()
            pairs = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
            scope = {"type": "http", "path": "/a b", "raw_path": b"/a%20b", "query_string": b"q=1", "headers": pairs}
            relayed.append({"id": str(row.id), "key": w.key})

            async def send(message: Any) -> None:
                sent.append(message)

            await Proxy(w.platform, None).serve(Target(port, str(row.id)), scope, None, send)  # type: ignore[arg-type]

    original = module.relay_http
    module.relay_http = relay  # type: ignore[assignment]
    try:
        asyncio.run(main())
    finally:
        module.relay_http = original
    status = sent[0]["status"] if sent else 0
    return status, (sent[1]["body"] if sent else b""), relayed[1:], relayed[0]


async def nothing(_world: object, _row: object) -> None:
    pass


def test_it_is_passed_to_the_agent_with_the_agents_token_and_the_programs_own_kept(world) -> None:
    headers = {"Authorization": "Basic x", "X-Api-Key": "wrn_" + "0" * 32, "X-Wrenn-Forwarded-Authorization": "forged"}
    _, _, (relayed,), about = serve(world, nothing, headers=headers)
    assert relayed["url"] == f"http://agent.test/proxy/{about['id']}/80/a%20b?q=1"
    assert dict(relayed["extra_headers"]) == {
        "Authorization": "Bearer scripted",
        "x-wrenn-forwarded-authorization": "Basic x",
    }
    assert set(relayed["headers_drop"]) == {"authorization", "x-wrenn-forwarded-authorization", "x-api-key"}
    for untidy in ("wrn_" + "A" * 32, " e2b_" + "0" * 32 + " ", '"wrn_' + "0" * 32 + '"'):
        assert "x-api-key" in serve(world, nothing, headers={"X-Api-Key": untidy})[2][0]["headers_drop"]
    _, _, (relayed,), _ = serve(world, nothing, headers={"X-Api-Key": "the program's own"})
    assert "x-api-key" not in relayed["headers_drop"]


@pytest.mark.parametrize("state", [State.STOPPED, State.ERROR, State.MISSING])
def test_what_does_not_run_was_not_found(world, state: State) -> None:
    status, body, relayed, about = serve(world, lambda w, row: move(w, row, state))
    assert status == 502 and relayed == []
    assert json.loads(body) == {"sandboxId": about["id"], "message": "The sandbox was not found", "code": 502}


def test_the_daemons_port_is_never_passed_on(world) -> None:
    status, body, relayed, _ = serve(world, nothing, port="49983")
    assert status == 403 and json.loads(body)["code"] == 403 and relayed == []


def test_a_silent_agent_and_a_refused_upgrade(world) -> None:
    assert serve(world, nothing, error=DialFailed("no"))[0] == 502
    assert serve(world, nothing, error=UpgradeRefused(418))[0] == 418


def test_nothing_from_the_name_gets_into_a_page_unescaped() -> None:
    refusal = Refusal(502, "<b>", "<script>", 1)
    scope = {"type": "http", "headers": [(b"user-agent", b"Mozilla")]}
    body, content_type = module._words(refusal, scope)
    assert content_type.startswith("text/html") and b"<script>" not in body and b"<b>" not in body
