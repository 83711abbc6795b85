"""The port subsystem with real socats: what /init starts and /snapshot/prepare stops."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.platform.envd.daemon import Daemon, eventually, own_network, running

pytestmark = [
    pytest.mark.platform,
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace of its own needs root"),
]


@pytest.fixture
def daemon(exec_shim: Path) -> Iterator[Daemon]:
    with own_network(), running(exec_shim) as started:
        yield started


class Echo:
    """A server that sends back what it gets, for any number of clients, on one or several addresses."""

    def __init__(self, *hosts: str, port: int = 0) -> None:
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port = port
        for host in hosts:
            listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, self.port))
            listener.listen()
            self.port = listener.getsockname()[1]
            self._sockets.append(listener)
            self._serve(self._accept, listener)

    def _serve(self, work: object, *given: object) -> None:
        thread = threading.Thread(target=work, args=given, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._serve(self._echo, connection)

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1000):
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        for listener in self._sockets:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@contextmanager
def echo(*hosts: str, port: int = 0) -> Iterator[Echo]:
    server = Echo(*hosts, port=port)
    try:
        yield server
    finally:
        server.close()


def answers(daemon: Daemon, port: int) -> bool:
    try:
        with socket.create_connection((daemon.address, port), timeout=5) as client:
            client.sendall(b"hello")
            return client.recv(100) == b"hello"
    except OSError:
        return False


def test_prepare_then_init(daemon: Daemon) -> None:
    daemon.init()
    daemon.prepare()
    with echo("127.0.0.1") as server:
        assert not answers(daemon, server.port)
        assert daemon.client.post("/init", headers=daemon.authorized).status_code == 204  # an empty body is enough
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
        assert len(daemon.forwarders()) == 1
        daemon.prepare()
        assert daemon.socats() == []
        assert daemon.children() == []
        assert not answers(daemon, server.port)


def test_prepare_twice_and_before_any_start(daemon: Daemon) -> None:
    daemon.prepare()
    daemon.prepare()
    daemon.init()
    daemon.prepare()
    daemon.prepare()


def test_a_second_init_starts_nothing_twice(daemon: Daemon) -> None:
    with echo("127.0.0.1") as server:
        daemon.init()
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
        first = daemon.forwarders()
        for _ in range(5):
            assert daemon.init().status_code == 204
        assert daemon.forwarders() == first


def test_open_connections_die_with_their_socat(daemon: Daemon) -> None:
    with echo("127.0.0.1") as server:
        daemon.init()
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
        with socket.create_connection((daemon.address, server.port), timeout=10) as client:
            client.sendall(b"x")
            assert client.recv(10) == b"x"
            assert len(daemon.socats()) > len(daemon.forwarders()) == 1  # it forked one for the connection
            daemon.prepare()
            assert daemon.socats() == []
            try:
                assert client.recv(10) == b""
            except ConnectionResetError:
                pass


def test_after_prepare_the_daemon_sleeps(daemon: Daemon) -> None:
    with echo("127.0.0.1") as server:
        threads = daemon.status("Threads")
        daemon.init()
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
        daemon.prepare()
        assert daemon.status("Threads") <= threads
        time.sleep(0.5)  # for the daemon to get from its answer to its sleep
        switches = daemon.status("voluntary_ctxt_switches")
        time.sleep(2.5)  # two periods and a half of the scanner
        assert daemon.status("voluntary_ctxt_switches") == switches


@pytest.mark.parametrize(("hosts", "target"), [(("::1",), "TCP6:[::1]:"), (("127.0.0.1", "::1"), "TCP4:127.0.0.1:")])
def test_other_families(daemon: Daemon, hosts: tuple[str, ...], target: str) -> None:
    with echo(*hosts) as server:
        daemon.init()
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
        (socat,) = daemon.forwarders()
        assert f"{target}{server.port}" in Path(f"/proc/{socat}/cmdline").read_text()


def test_public_ports_are_left_alone(daemon: Daemon) -> None:
    with echo("0.0.0.0") as public, echo("127.0.0.1") as private:
        daemon.init()
        eventually(lambda: answers(daemon, private.port), "the private port is reachable")
        assert len(daemon.forwarders()) == 1
        assert answers(daemon, public.port)


def test_a_port_comes_and_goes(daemon: Daemon) -> None:
    daemon.init()
    with echo("127.0.0.1") as server:
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
    eventually(lambda: daemon.socats() == [], "its socat is gone")
    assert daemon.children() == []
    with echo("127.0.0.1", port=server.port):
        eventually(lambda: answers(daemon, server.port), "the port is reachable again")


def test_a_socat_that_could_not_bind_is_tried_again(daemon: Daemon) -> None:
    with echo("127.0.0.1") as server:
        with echo(daemon.address, port=server.port):
            daemon.init()
            log = Path(f"/proc/{daemon.pid}/fd/2").resolve()
            eventually(lambda: "tried again" in log.read_text(), "the first try fails")
            eventually(lambda: daemon.socats() == [], "none lives between two tries")
        eventually(daemon.socats, "a socat got the port")
        eventually(lambda: answers(daemon, server.port), "the port is reachable")


def test_a_socat_that_was_killed_is_replaced(daemon: Daemon) -> None:
    with echo("127.0.0.1") as server:
        daemon.init()
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
        (first,) = daemon.forwarders()
        os.kill(first, 9)
        eventually(lambda: daemon.forwarders() not in ([], [first]) and answers(daemon, server.port), "it is replaced")


def test_a_hundred_cycles_with_live_ports(daemon: Daemon) -> None:
    daemon.init()
    with echo("127.0.0.1") as server:
        for cycle in range(100):
            if cycle % 20 == 0:  # some cycles long enough for a socat, most stopped in the middle of something
                eventually(lambda: answers(daemon, server.port), "the port is reachable")
            daemon.prepare()
            assert daemon.socats() == []
            assert daemon.children() == []  # not even a zombie
            assert daemon.init().status_code == 204
        eventually(lambda: answers(daemon, server.port), "the port is reachable")


def test_concurrent_starts_and_stops(daemon: Daemon) -> None:
    daemon.init()
    port = daemon.client.base_url.port

    def post(path: str, results: list[int]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", path, headers=daemon.authorized)
        results.append(connection.getresponse().status)
        connection.close()

    results: list[int] = []
    with echo("127.0.0.1") as server:
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
        paths = ["/init", "/snapshot/prepare"] * 50
        threads = [threading.Thread(target=post, args=(path, results)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [204] * 100
        daemon.prepare()
        assert (daemon.socats(), daemon.children()) == ([], [])
        daemon.init()
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
