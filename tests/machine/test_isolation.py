"""From inside a guest, nothing of another sandbox, of the host or of a private range can be reached: each is tried.

Every target is a server that really answers, as the host itself proves first; so a closed door is the firewall's doing.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.running import Platform

PRIVATE = ("10.99.7.1", "172.16.99.1", "192.168.99.1", "100.64.99.1", "198.18.99.1")
METADATA = "169.254.169.254"

#: Runs in the guest: tries each (kind, host, port) for 3 s and prints those that answered.
PROBE = """
import json, socket, sys
open_ = []
for kind, host, port in json.loads(sys.argv[1]):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.settimeout(3)
    try:
        s.connect((host, port))
        if kind == "udp":
            s.send(b"ping")
            s.recv(4)
        open_.append([kind, host, port])
    except OSError:
        pass
    finally:
        s.close()
print(json.dumps(open_))
"""


@contextmanager
def _answering() -> Iterator[int]:
    """A TCP and a UDP server on every address of the host, on one port."""
    tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp.bind(("0.0.0.0", 0))
    port = int(tcp.getsockname()[1])
    udp.bind(("0.0.0.0", port))
    tcp.listen(64)

    def serve_tcp() -> None:
        while True:
            try:
                peer, _ = tcp.accept()
            except OSError:
                return
            with peer:
                peer.sendall(b"pong")

    def serve_udp() -> None:
        while True:
            try:
                _, peer = udp.recvfrom(16)
                udp.sendto(b"pong", peer)
            except OSError:
                return

    threads = [threading.Thread(target=t, daemon=True) for t in (serve_tcp, serve_udp)]
    for thread in threads:
        thread.start()
    try:
        yield port
    finally:
        for sock in (tcp, udp):
            sock.shutdown(socket.SHUT_RDWR) if sock is tcp else None
            sock.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wake:
            wake.sendto(b"", ("127.0.0.1", port))
        threads[0].join(5)


@contextmanager
def _private_addresses() -> Iterator[None]:
    """The private and special addresses, really there: on a link of the host."""
    subprocess.run(["ip", "link", "add", "wtm-lan", "type", "veth", "peer", "name", "wtm-lan1"], check=True)
    try:
        for address in (*PRIVATE, METADATA):
            subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "wtm-lan"], check=True)
        subprocess.run(["ip", "link", "set", "wtm-lan", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "link", "delete", "wtm-lan"], check=True)


def _own_addresses() -> list[str]:
    shown = subprocess.run(["ip", "-j", "-4", "address"], capture_output=True, text=True, check=True)
    return [a["local"] for link in json.loads(shown.stdout) for a in link["addr_info"]]


def _reached(wrenn: Platform, sandbox: str, targets: list[tuple[str, str, int]]) -> list[list[object]]:
    answer = wrenn.run(sandbox, "python3", "-c", PROBE, json.dumps(targets), timeout_sec=300)
    assert answer["exit_code"] == 0, answer
    found: list[list[object]] = json.loads(str(answer["stdout"]))
    return found


@pytest.mark.timeout(600)
def test_no_door_is_open(wrenn: Platform, sandbox: str) -> None:
    other = wrenn.create()
    neighbour = str(other["host_ip"])
    wrenn.client.post(
        f"/v1/sandboxes/{other['id']}/exec",
        json={"cmd": "python3", "args": ["-m", "http.server", "8123"], "background": True},
    ).raise_for_status()
    with _answering() as port, _private_addresses():
        addresses = [a for a in _own_addresses() if not a.startswith("127.")]
        assert set(PRIVATE) <= set(addresses)
        for address in addresses:
            with socket.create_connection((address, port), timeout=3) as peer:
                assert peer.recv(4) == b"pong", "the door is there for the host"
        with socket.create_connection((neighbour, 49983), timeout=5):
            pass
        targets = [(kind, address, port) for address in addresses for kind in ("tcp", "udp")]
        targets += [("tcp", neighbour, p) for p in (49983, 8123)]
        targets += [("tcp", METADATA, 80), ("tcp", "169.254.0.22", port), ("tcp", "169.254.0.22", 22)]
        targets += [("tcp", a, 8080) for a in (neighbour, *addresses)]
        assert _reached(wrenn, sandbox, targets) == []


def test_our_own_services_are_there(wrenn: Platform, sandbox: str) -> None:
    query = "import socket; s = socket.socket(2, 2); s.settimeout(5); s.connect(('169.254.0.22', 123)); "
    query += "s.send(bytes([0x23]) + bytes(47)); print(len(s.recv(64)))"
    assert wrenn.sh(sandbox, f'python3 -c "{query}"') == "48\n"


def test_envd_of_a_sandbox_wants_its_token_even_from_the_host(wrenn: Platform) -> None:
    made = wrenn.create()

    for path in ("/metrics", "/envs", "/files?path=/etc/passwd"):
        answer = httpx.get(f"http://{made['host_ip']}:49983{path}", timeout=30)
        assert answer.status_code == 401, path
