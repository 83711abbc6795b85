from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.envd.asgi import Answer, call
from wrenn_sandbox.envd.app import Application, Parts
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.http import Event, Header, Receive, Scope, Send
from wrenn_sandbox.envd.init import NO_DUTIES, Initializer
from wrenn_sandbox.envd.rights import FileThreads

TOKEN = (b"x-access-token", b"tok")


class Ports:
    def __init__(self) -> None:
        self.calls: list[str] = []

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self) -> None:
        self.calls.append("stop")


async def service(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"service", "more_body": False})


class Bench:
    def __init__(self, token: str | None = "tok") -> None:
        self.ports = Ports()
        self.context = GuestContext(default_user="root", access_token=token)
        self.application = Application(
            Parts(
                context=self.context,
                ports=self.ports,
                initializer=Initializer(self.context, self.ports, NO_DUTIES),
                files=FileAccess(self.context, FileThreads(1)),
                services={"process.Process": service},
            )
        )

    def call(self, method: str, target: str, body: bytes = b"", headers: Sequence[Header] = ()) -> Answer:
        async def main() -> Answer:
            self.application.open_gate()
            return await call(self.application, method, target, body, headers)

        return asyncio.run(main())


def test_health() -> None:
    answer = Bench(None).call("GET", "/health")
    assert (answer.status, answer.body, answer.headers) == (204, b"", {"cache-control": "no-store"})


def test_prepare_needs_no_token_and_stops_the_ports_each_time() -> None:
    bench = Bench()
    for _ in range(2):
        answer = bench.call("POST", "/snapshot/prepare")
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers == {"cache-control": "no-store", "connection": "close"}
    assert bench.ports.calls == ["stop", "stop"]


def test_init_sets_the_token_once() -> None:
    bench = Bench(None)
    assert bench.call("GET", "/envs").status == 401
    assert bench.call("POST", "/init", b'{"accessToken":"tok","reseed":false}').status == 204
    assert bench.call("GET", "/envs").status == 401
    assert bench.call("GET", "/envs", headers=[TOKEN]).status == 200
    assert bench.call("POST", "/init", b'{"accessToken":"other","reseed":false}').status == 401
    assert bench.call("POST", "/init", b"{", headers=[TOKEN]).status == 400
    assert bench.call("POST", "/init", b" " * (2 << 20), headers=[TOKEN]).status == 413
    assert bench.ports.calls == ["start"]


def test_envs_and_metrics() -> None:
    bench = Bench()
    bench.call("POST", "/init", b'{"envVars":{"A":"1"},"reseed":false}', [TOKEN])
    answer = bench.call("GET", "/envs", headers=[TOKEN])
    assert answer.json()["A"] == "1"
    assert bench.call("GET", "/metrics", headers=[TOKEN]).json()["cpu_count"] >= 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/", 404),
        ("DELETE", "/files", 405),
        ("GET", "/init", 405),
        ("POST", "/health", 405),
        ("POST", "/process.Processes/Start", 404),
    ],
)
def test_unknown_routes(method: str, path: str, status: int) -> None:
    assert Bench().call(method, path, headers=[TOKEN]).status == status
    assert Bench().call(method, path).status == 401


def test_services_are_behind_the_same_door() -> None:
    bench = Bench()
    assert bench.call("POST", "/process.Process/Start", headers=[TOKEN]).body == b"service"
    answer = bench.call("POST", "/process.Process/Start")
    assert (answer.status, answer.json()["code"]) == (401, "unauthenticated")


def test_preflight_needs_no_token() -> None:
    headers = [(b"origin", b"https://a"), (b"access-control-request-method", b"POST")]
    answer = Bench().call("OPTIONS", "/files", headers=[*headers, (b"access-control-request-headers", b"x-a, x-b")])
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "x-a, x-b"
    assert answer.headers["access-control-max-age"] == "7200"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert Bench().call("OPTIONS", "/files").status == 401


def test_a_file_goes_up_and_down(tmp_path: Path) -> None:
    bench, target = Bench(), f"/files?username=root&path={tmp_path}/f"
    up = bench.call("POST", target, b"hello", [TOKEN, (b"content-type", b"application/octet-stream")])
    assert up.json() == [{"path": f"{tmp_path}/f", "name": "f", "type": "file"}]
    assert bench.call("GET", target, headers=[TOKEN]).body == b"hello"
    assert bench.call("GET", target).status == 401


def test_requests_wait_at_the_gate_unless_they_are_the_exercise() -> None:
    async def main() -> None:
        bench = Bench(None)
        application = bench.application
        exercise = [(b"x-access-token", application.exercise_token.encode())]
        assert (await call(application, "GET", "/health", headers=exercise)).status == 204
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(call(application, "GET", "/health"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not waiting.done()
            application.open_gate()
        assert waiting.result().status == 204

    asyncio.run(main())


def test_lifespan_enters_and_leaves_its_contexts() -> None:
    seen: list[str] = []

    class Context:
        async def __aenter__(self) -> None:
            seen.append("entered")

        async def __aexit__(self, *_: object) -> None:
            seen.append("left")

    async def main() -> None:
        bench = Bench()
        parts = bench.application.parts
        application = Application(
            Parts(parts.context, parts.ports, parts.initializer, parts.files, contexts=(Context(),))
        )
        asked: list[Event] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive() -> Event:
            return asked.pop(0)

        async def send(event: Event) -> None:
            seen.append(event["type"])

        await application({"type": "lifespan"}, receive, send)

    asyncio.run(main())
    assert seen == ["entered", "lifespan.startup.complete", "left", "lifespan.shutdown.complete"]
