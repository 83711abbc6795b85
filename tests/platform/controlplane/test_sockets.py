"""WebSockets: commands and terminals, exact to the byte, with errors that say what they are."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.platform.controlplane.conftest import Plane, until
from wrenn_sandbox.core.errors import Exhausted

pytestmark = pytest.mark.platform

ZERO = "sb-00000000-0000-4000-8000-000000000000"


class Socket:
    """JSON messages both ways."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, **message: object) -> None:
        self.connection.send(json.dumps(message))

    def receive(self) -> dict[str, Any]:
        return json.loads(self.connection.recv(30))

    def until(self, *types: str) -> list[dict[str, Any]]:
        """All messages up to the first of one of ``types``."""
        seen = [self.receive()]
        while seen[-1]["type"] not in types:
            seen.append(self.receive())
        return seen

    def end(self) -> int:
        """The close code."""
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                self.connection.recv(30)
        return caught.value.rcvd.code if caught.value.rcvd else 1006


@contextmanager
def opened(plane: Plane, path: str, key: str | None = "") -> Iterator[Socket]:
    headers = {} if key is None else {"X-API-Key": key or plane.key}
    url = plane.url.replace("http", "ws", 1) + path
    with connect(url, additional_headers=headers, proxy=None) as connection:
        yield Socket(connection)


def text_of(messages: list[dict[str, Any]], kind: str = "stdout") -> str:
    return "".join(m["data"] for m in messages if m["type"] == kind)


def terminal_text(messages: list[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(m["data"]) for m in messages if m["type"] == "output")


def test_a_command_streams_its_output(plane: Plane, sandbox: str) -> None:
    with opened(plane, f"/v1/sandboxes/{sandbox}/exec/stream") as socket:
        socket.send(type="start", cmd="sh", args=["-c", "echo ä€𝄞$A; pwd; exit 4"], envs={"A": "ü"}, cwd="/tmp")
        seen = socket.until("exit")
        assert seen[0]["type"] == "start" and seen[0]["pid"] > 0
        assert text_of(seen) == "ä€𝄞ü\n/tmp\n"  # the stand-in cuts characters in pieces
        assert seen[-1] == {"type": "exit", "exit_code": 4}
        assert socket.end() == 1000


def test_bytes_come_exactly_as_base64(plane: Plane, sandbox: str) -> None:
    with opened(plane, f"/v1/sandboxes/{sandbox}/exec/stream") as socket:
        socket.send(type="start", cmd="sh", args=["-c", r"printf '\377\376\000ok'"], encoding="base64")
        seen = socket.until("exit")
        assert b"".join(base64.b64decode(m["data"]) for m in seen if m["type"] == "stdout") == b"\xff\xfe\0ok"


def test_stop_kills_the_command(plane: Plane, sandbox: str) -> None:
    with opened(plane, f"/v1/sandboxes/{sandbox}/exec/stream") as socket:
        socket.send(type="start", cmd="sh", args=["-c", "echo on; sleep 600"])
        socket.until("stdout")
        socket.send(type="nonsense")
        assert socket.until("error")[-1]["code"] == "invalid_request"
        socket.send(type="stop")
        assert socket.until("exit")[-1]["exit_code"] == -9


def test_leaving_lets_a_command_run_and_another_socket_follow_it(plane: Plane, sandbox: str) -> None:
    with opened(plane, f"/v1/sandboxes/{sandbox}/exec/stream") as socket:
        socket.send(type="start", cmd="sh", args=["-c", "sleep 0.5; sleep 600"])
        pid = socket.until("start")[0]["pid"]
    listed = plane.client.get(f"/v1/sandboxes/{sandbox}/processes").json()["processes"]
    assert [p["pid"] for p in listed] == [pid]
    with opened(plane, f"/v1/sandboxes/{sandbox}/processes/{pid}/stream?encoding=base64") as socket:
        assert socket.receive() == {"type": "start", "pid": pid}
        socket.connection.send("frames of the client are ignored")
        plane.client.delete(f"/v1/sandboxes/{sandbox}/processes/{pid}")
        assert socket.until("exit")[-1]["exit_code"] == -9


@pytest.mark.parametrize("path", ["exec/stream", "pty", "processes/1/stream"])
def test_every_socket_wants_a_key(plane: Plane, sandbox: str, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught, opened(plane, f"/v1/sandboxes/{sandbox}/{path}", "wrn_" + "0" * 32):
        pass
    assert caught.value.response.status_code == 401
    with opened(plane, f"/v1/sandboxes/{sandbox}/{path}", None) as socket:
        socket.send(type="start", cmd="true")
        assert socket.receive()["code"] == "unauthorized"
        assert socket.end() == 4401
    with opened(plane, f"/v1/sandboxes/{sandbox}/{path}", None) as socket:
        socket.send(type="auth", token="wrn_" + "0" * 32)
        assert socket.until("error")[-1] | {"data": ""} == {
            "type": "error",
            "code": "unauthorized",
            "data": "",
            "fatal": True,
        }
        assert socket.end() == 4401


def test_the_first_message_may_carry_the_key(plane: Plane, sandbox: str) -> None:
    with opened(plane, f"/v1/sandboxes/{sandbox}/exec/stream", None) as socket:
        socket.send(type="auth", token=plane.key)
        socket.send(type="start", cmd="echo", args=["hi"])
        assert text_of(socket.until("exit")) == "hi\n"


def test_a_malformed_id_is_refused_before_the_upgrade(plane: Plane) -> None:
    with pytest.raises(InvalidStatus) as caught, opened(plane, "/v1/sandboxes/nonsense/pty"):
        pass
    assert caught.value.response.status_code == 400
    assert json.loads(caught.value.response.body)["error"]["code"] == "invalid_id"


@pytest.mark.parametrize(
    ("path", "first", "code", "close"),
    [
        (f"{ZERO}/exec/stream", {"type": "start", "cmd": "true"}, "not_found", 4404),
        (f"{ZERO}/pty", {"type": "start"}, "not_found", 4404),
        (f"{ZERO}/processes/1/stream", {}, "not_found", 4404),
        ("SANDBOX/exec/stream", {"type": "start"}, "invalid_request", 4400),
        ("SANDBOX/exec/stream", {"type": "start", "cmd": "a\0"}, "invalid_request", 4400),
        ("SANDBOX/exec/stream", {"type": "start", "cmd": "x", "background": True}, "invalid_request", 4400),
        ("SANDBOX/exec/stream", {"type": "stop"}, "invalid_request", 4400),
        ("SANDBOX/pty", {"type": "start", "cols": 0}, "invalid_request", 4400),
        ("SANDBOX/pty", {"type": "input", "data": "eA=="}, "invalid_request", 4400),
        ("SANDBOX/pty", {"type": "connect", "tag": "pty-gone"}, "process_not_found", 4404),
        ("SANDBOX/processes/12345/stream", {}, "process_not_found", 4404),
        ("SANDBOX/processes/1/stream?encoding=morse", {}, "invalid_request", 4400),
    ],
)
def test_errors_are_messages_and_close_codes(
    plane: Plane, sandbox: str, path: str, first: dict[str, object], code: str, close: int
) -> None:
    with opened(plane, "/v1/sandboxes/" + path.replace("SANDBOX", sandbox)) as socket:
        if first:
            socket.send(**first)
        error = socket.until("error")[-1]
        assert error["code"] == code and error["fatal"] and error["data"].endswith(".")
        assert socket.end() == close


def test_output_that_breaks_off_is_no_end(plane: Plane, sandbox: str) -> None:
    plane.agent.fail["ExecStream"] = Exhausted("Too many processes.", slug="too_many")
    with opened(plane, f"/v1/sandboxes/{sandbox}/exec/stream") as socket:
        socket.send(type="start", cmd="true")
        assert socket.receive()["code"] == "too_many"
        assert socket.end() == 4503


def test_a_terminal(plane: Plane, sandbox: str) -> None:
    with opened(plane, f"/v1/capsules/{sandbox}/pty") as socket:
        socket.send(type="start", cmd="/bin/sh", cols=100, rows=30, envs={"PS1": "> "})
        # Typed before the shell has started: nothing of it may be lost.
        for line in (b"echo one$((1+", b"1))\n"):
            socket.send(type="input", data=base64.b64encode(line).decode())
        started = socket.until("started")[-1]
        assert started["tag"].startswith("pty-") and started["pid"] > 0
        seen: list[dict[str, Any]] = []
        while b"one2\r\n" not in terminal_text(seen):
            seen += socket.until("output")
        socket.send(type="pong")
        socket.send(type="input", data="%%%")
        assert socket.until("error")[-1]["code"] == "invalid_request"
        socket.send(type="input", data=base64.b64encode(b"exit 3\n").decode())
        assert socket.until("exit")[-1]["exit_code"] == 3
        assert socket.end() == 1000


def test_a_terminal_can_be_left_and_come_back_to(plane: Plane, sandbox: str) -> None:
    path = f"/v1/sandboxes/{sandbox}/pty"
    with opened(plane, path) as socket:
        socket.send(type="start", cmd="/bin/sh")
        tag = socket.until("started")[-1]["tag"]
    with opened(plane, path) as socket:
        socket.send(type="connect", tag=tag)
        socket.send(type="input", data=base64.b64encode(b"echo again\n").decode())
        seen: list[dict[str, Any]] = []
        while b"again\r\n" not in terminal_text(seen):
            seen += socket.until("output")
        socket.send(type="kill")
        until(lambda: "PtyKill" in plane.agent.calls)


def test_input_keeps_its_order_and_swallows_no_resize(plane: Plane, sandbox: str) -> None:
    plane.agent.delay_s["PtySendInput"] = 0.01  # a slow program: the queue fills
    with opened(plane, f"/v1/sandboxes/{sandbox}/pty") as socket:
        socket.send(type="start", cmd="/bin/cat")
        socket.until("started")
        wanted = b""
        for n in range(400):
            data = f"{n},".encode()
            socket.send(type="input", data=base64.b64encode(data).decode())
            wanted += data
            if n % 50 == 49:
                socket.send(type="resize", cols=n + 1, rows=24)
                wanted += f"<{n + 1}x24>".encode()
        until(lambda: b"".join(plane.agent.typed) == wanted)


def test_a_terminal_that_cannot_start_says_why(plane: Plane, sandbox: str) -> None:
    plane.agent.fail["PtyAttach"] = Exhausted("No more terminals.", slug="too_many")
    with opened(plane, f"/v1/sandboxes/{sandbox}/pty") as socket:
        socket.send(type="start")
        assert socket.receive()["code"] == "too_many"
        assert socket.end() == 4503


def test_sockets_leave_no_descriptor(plane: Plane, sandbox: str) -> None:
    def once() -> None:
        with opened(plane, f"/v1/sandboxes/{sandbox}/exec/stream") as socket:
            socket.send(type="start", cmd="sleep", args=["600"])
            socket.until("start")

    once()
    before = plane.descriptors()
    for _ in range(5):
        once()
    until(lambda: plane.descriptors() <= before + 1)


def test_none_of_this_was_an_accident(plane: Plane) -> None:
    assert "unexpected failure" not in plane.log() and "Traceback" not in plane.log()
