from __future__ import annotations

import json

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.hostagent.app import App
from wrenn_sandbox.hostagent.service.service import MAX_MESSAGE_BYTES

TOKEN = "0123456789abcdef"


class Recorder:
    """Stands for both inner applications, and for the server."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sent: list[dict] = []
        self.error: Unavailable | None = None

    def named(self, name: str):
        async def application(scope, receive, send) -> None:
            self.calls.append(name)

        return application

    async def send(self, message) -> None:
        self.sent.append(dict(message))

    async def complete(self) -> None:
        if self.error is not None:
            raise self.error

    async def ask(self, path: str, *headers: tuple[bytes, bytes], kind: str = "http") -> None:
        app = App(TOKEN, self.named("calls"), self.named("proxy"), self.complete)
        scope = {"type": kind, "path": path, "headers": list(headers)}
        if kind == "websocket":
            scope["extensions"] = {"websocket.http.response": {}}
        await app(scope, None, self.send)


GOOD = (b"authorization", b"Bearer 0123456789abcdef")


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"authorization", b"Bearer x"),),
        ((b"authorization", b"0123456789abcdef"),),
        ((b"authorization", b"\xff"),),
    ],
)
def test_nothing_passes_without_the_token(run, headers, kind: str) -> None:
    async def work() -> None:
        recorder = Recorder()
        for path in ("/hostagent.v1.HostAgentService/Exec", "/proxy/x/1/", "/"):
            await recorder.ask(path, *headers, kind=kind)
        assert recorder.calls == []
        assert {message["status"] for message in recorder.sent if "status" in message} == {401}

    run(work)


def test_the_path_decides(run) -> None:
    async def work() -> None:
        recorder = Recorder()
        await recorder.ask("/hostagent.v1.HostAgentService/Exec", GOOD)
        await recorder.ask("/proxy/x/1/", GOOD)
        await recorder.ask("/proxy/x/1/", GOOD, kind="websocket")
        assert recorder.calls == ["calls", "proxy", "proxy"]
        await recorder.ask("/other", GOOD, kind="websocket")
        assert recorder.sent[0]["status"] == 404

    run(work)


def test_a_message_above_the_limit_is_too_large_and_not_host_full(run) -> None:
    async def work() -> None:
        recorder = Recorder()
        length = (b"content-length", str(MAX_MESSAGE_BYTES + 1).encode())
        await recorder.ask("/s/WriteFile", GOOD, length, (b"content-type", b"application/proto"))
        assert recorder.calls == []
        assert json.loads(recorder.sent[1]["body"])["code"] == "out_of_range"
        await recorder.ask("/s/WriteFileStream", GOOD, length, (b"content-type", b"application/connect+proto"))
        assert recorder.calls == ["calls"]

    run(work)


def test_nobody_is_answered_before_it_is_known_what_an_earlier_agent_left(run) -> None:
    async def work() -> None:
        recorder = Recorder()
        recorder.error = Unavailable("still at it", slug="agent_starting")
        await recorder.ask("/hostagent.v1.HostAgentService/ListSandboxes", GOOD)
        assert recorder.calls == [] and recorder.sent[0]["status"] == 503
        assert json.loads(recorder.sent[1]["body"]) == {"code": "unavailable", "message": "still at it"}

    run(work)
