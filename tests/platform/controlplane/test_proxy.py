"""Ports of sandboxes by their names: HTTP and WebSockets, streaming, and clear words when it does not work."""

from __future__ import annotations

import asyncio
import json
import socket as socket_
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.platform.controlplane.conftest import Plane, until
from tests.platform.controlplane.standin import TOKEN
from wrenn_sandbox.core.ids import SandboxId

pytestmark = pytest.mark.platform


class Program(BaseHTTPRequestHandler):
    """A program in a sandbox: tells what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        said = {"path": self.path, "headers": dict(self.headers), "length": len(body), "method": self.command}
        answer = json.dumps(said).encode()
        self.send_response(203)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A program's port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Program) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def websocket_port() -> Iterator[int]:
    """A program that echoes messages."""
    ports: list[int] = []
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        async with serve(echo, "127.0.0.1", 0) as server:
            ports.append(next(iter(server.sockets)).getsockname()[1])
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert ready.wait(10)
    yield ports[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def ask(plane: Plane, host: str, path: str = "/", **options: object) -> httpx.Response:
    headers = {"Host": host, **options.pop("headers", {})}  # type: ignore[dict-item]
    method = str(options.pop("method", "GET"))
    return plane.client.request(method, path, headers=headers, **options)  # type: ignore[arg-type]


def test_every_form_of_the_name_reaches_the_program(plane: Plane, sandbox: str, port: int) -> None:
    identity = SandboxId.parse(sandbox)
    for label in (sandbox, f"cl-{identity.base36}", identity.base36, str(identity.value), sandbox.upper()):
        for domain in ("sbx.test", "sbx.test:8443", "localhost:1"):
            answer = ask(plane, f"{port}-{label}.{domain}", "/a%20b/c%2Fd?q=1&r=%20")
            assert answer.status_code == 203 and answer.json()["path"] == "/a%20b/c%2Fd?q=1&r=%20"
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]


def test_bodies_and_headers_pass_but_no_keys_of_ours(plane: Plane, sandbox: str, port: int) -> None:
    headers = {"Authorization": "Basic dTpw", "X-Api-Key": plane.key, "X-Other": "1"}
    answer = ask(plane, f"{port}-{sandbox}.sbx.test", "/", method="POST", headers=headers, content=b"x" * (8 << 20))
    said = answer.json()
    assert said["length"] == 8 << 20 and said["method"] == "POST"
    seen = {name.lower(): value for name, value in said["headers"].items()}
    assert seen["x-other"] == "1" and "x-api-key" not in seen and seen["host"].endswith(".sbx.test")
    assert TOKEN not in answer.text  # the agent's token stays with the agent
    own = ask(plane, f"{port}-{sandbox}.sbx.test", "/", headers={"X-Api-Key": "of-the-program"})
    assert {n.lower(): v for n, v in own.json()["headers"].items()}["x-api-key"] == "of-the-program"


def opened(plane: Plane, host: str) -> ClientConnection:
    """A WebSocket to a name that resolves to the control plane."""
    where = urlsplit(plane.url)
    connection = socket_.create_connection((where.hostname, where.port))
    return connect(f"ws://{host}/socket", sock=connection, proxy=None)


def test_websockets_pass(plane: Plane, sandbox: str, websocket_port: int) -> None:
    with opened(plane, f"{websocket_port}-{sandbox}.sbx.test") as socket:
        for message in ("text ü", b"\0\xff", "x" * 100_000):
            socket.send(message)
            assert socket.recv(30) == message


def test_what_cannot_be_reached(plane: Plane, sandbox: str, port: int) -> None:
    unknown = "sb-00000000-0000-4000-8000-000000000000"
    answer = ask(plane, f"{port}-{unknown}.sbx.test")
    assert answer.status_code == 502
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.json() == {"sandboxId": unknown, "message": "The sandbox was not found", "code": 502}

    closed = ask(plane, f"1-{sandbox}.sbx.test")
    assert closed.status_code == 502 and closed.json()["message"] == "The sandbox is running but port is not open"
    assert closed.json()["port"] == 1

    daemon = ask(plane, f"49983-{sandbox}.sbx.test", "/health")
    assert daemon.status_code == 403 and daemon.json()["code"] == 403

    for host in (f"0-{sandbox}.sbx.test", f"65536-{sandbox}.sbx.test", f"{port}-nonsense.sbx.test"):
        malformed = ask(plane, host)
        assert malformed.status_code == 400 and malformed.headers["content-type"].startswith("text/plain")

    plane.client.delete(f"/v1/sandboxes/{sandbox}")
    assert ask(plane, f"{port}-{sandbox}.sbx.test").status_code == 502


def test_a_sandbox_in_transition(plane: Plane, sandbox: str, port: int) -> None:
    def set_status(status: str) -> None:
        database = sqlite3.connect(plane.folder / "wrenn.db", timeout=10)
        identity = str(SandboxId.parse(sandbox).value)
        with database:
            database.execute("UPDATE sandboxes SET status = ? WHERE id = ?", (status, identity))
        database.close()

    set_status("resuming")
    until(lambda: ask(plane, f"{port}-{sandbox}.sbx.test").status_code == 409)  # a row may be a second old
    set_status("running")


def test_browsers_get_a_page(plane: Plane, port: int) -> None:
    host = f"{port}-sb-00000000-0000-4000-8000-000000000000.sbx.test"
    browser = {"User-Agent": "Mozilla/5.0", "Accept": "text/html"}
    answer = ask(plane, host, headers=browser)
    assert answer.status_code == 502 and answer.text.startswith("<html")
    for script in ({"Sec-Fetch-Mode": "cors"}, {"X-Requested-With": "x"}, {"Accept": "application/json"}):
        assert ask(plane, host, headers=browser | script).json()["code"] == 502


def test_other_hosts_are_the_api(plane: Plane, sandbox: str, port: int) -> None:
    for host in ("127.0.0.1", f"{port}-{sandbox}.elsewhere.test", "sbx.test", f"x{port}-{sandbox}.sbx.test"):
        assert ask(plane, host, "/health").json()["status"] == "ok"


def test_a_refused_upgrade_has_a_status(plane: Plane, sandbox: str, port: int) -> None:
    for host, status in ((f"49983-{sandbox}.sbx.test", 403), (f"{port}-{sandbox}.sbx.test", 203)):
        with pytest.raises(InvalidStatus) as caught, opened(plane, host):
            pass
        assert caught.value.response.status_code == status


def test_requests_leave_no_descriptor(plane: Plane, sandbox: str, port: int) -> None:
    for _ in range(3):
        ask(plane, f"{port}-{sandbox}.sbx.test")
    before = plane.descriptors()
    for _ in range(20):
        ask(plane, f"{port}-{sandbox}.sbx.test")
        ask(plane, f"1-{sandbox}.sbx.test")
    assert plane.descriptors() <= before + 2
