"""Time and names at the gateway address, asked from a guest."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import uvloop

from wrenn_sandbox.core.slots import GATEWAY_IP
from wrenn_sandbox.core.spec import Egress, NetworkPolicy
from wrenn_sandbox.net.pool import NamespacePool, PoolOptions
from wrenn_sandbox.net.slotlink import SlotLink

from . import world as w

pytestmark = pytest.mark.platform

ANSWER = "203.0.113.99"
QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01"


def run(scene: Coroutine[None, None, None]) -> None:
    """On the event loop that the host agent uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene)


@pytest.fixture(scope="module", autouse=True)
def _uvloop_opens_its_descriptors_once() -> None:
    run(asyncio.sleep(0))


@asynccontextmanager
async def one_guest(
    here: w.World, resolv_conf: Path, policy: NetworkPolicy | None = None
) -> AsyncIterator[tuple[SlotLink, w.Guest]]:
    options = PoolOptions(tag=here.tag, warm=1, resolv_conf=resolv_conf)
    async with NamespacePool(options) as pool, pool.link(policy or NetworkPolicy()) as link:
        with w.guest(f"{here.tag}-g", link.tap_fd) as guest:
            yield link, guest


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(f"search example.com\nnameserver {w.ROUTER_ADDRESS}\n")
    return path


@contextmanager
def name_server(place: str | None) -> Iterator[None]:
    """Answers every question, on UDP and TCP, with one address."""

    def bind() -> tuple[socket.socket, socket.socket]:
        packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        packets.bind(("0.0.0.0", 53))
        return packets, socket.create_server(("0.0.0.0", 53))

    def packet(packets: socket.socket) -> None:
        query, address = packets.recvfrom(4096)
        packets.sendto(b"\0\0" + answer(query)[2:], address)  # a forged answer comes first
        packets.sendto(answer(query), address)

    def stream(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            response = answer(connection.recv(4096)[2:])
            connection.sendall(struct.pack("!H", len(response)) + response)

    packets, listener = w.inside(place, bind)
    with packets, listener, w.served({packets: packet, listener: stream}):
        yield


def answer(query: bytes) -> bytes:
    record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + socket.inet_aton(ANSWER)
    return query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + query[12:] + record


async def ask(guest: w.Guest, query: bytes = QUERY, *, stream: bool = False) -> bytes:
    """The response to a query from the guest."""

    def exchange() -> bytes:
        if stream:
            with socket.create_connection((GATEWAY_IP, 53), timeout=8) as connection:
                connection.sendall(struct.pack("!H", len(query)) + query)
                return connection.recv(4096)[2:]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
            packets.settimeout(8)
            packets.connect((GATEWAY_IP, 53))
            packets.send(query)
            return packets.recv(4096)

    return await asyncio.to_thread(w.inside, guest.name, exchange)


@pytest.mark.parametrize("stream", [False, True])
def test_names_are_resolved_by_the_hosts_resolver(here: w.World, resolv_conf: Path, stream: bool) -> None:
    async def scene() -> None:
        with name_server(here.internet):
            async with one_guest(here, resolv_conf) as (_, guest):
                assert await ask(guest, stream=stream) == answer(QUERY)

    run(scene())


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_resolver_is_a_server_failure(here: w.World, resolv_conf: Path, stream: bool) -> None:
    async def scene() -> None:
        resolv_conf.write_text("nameserver 127.0.0.9\n")
        async with one_guest(here, resolv_conf) as (_, guest):
            response = await ask(guest, stream=stream)
            assert response[:2] == QUERY[:2]
            assert response[3] & 0x0F == 2

    run(scene())


def test_a_closed_sandbox_resolves_nothing_until_it_is_opened(here: w.World, resolv_conf: Path) -> None:
    async def scene() -> None:
        with name_server(here.internet):
            async with one_guest(here, resolv_conf, NetworkPolicy(Egress.CLOSED)) as (link, guest):
                assert (await ask(guest))[3] & 0x0F == 5
                await link.apply(NetworkPolicy())
                assert await ask(guest) == answer(QUERY)

    run(scene())


def test_garbage_is_refused_and_does_not_disturb(here: w.World, resolv_conf: Path) -> None:
    async def scene() -> None:
        with name_server(here.internet):
            async with one_guest(here, resolv_conf) as (_, guest):
                assert (await ask(guest, QUERY[:20]))[3] & 0x0F == 1
                for garbage in (b"", b"x", QUERY[:2] + b"\x81" + QUERY[3:], bytes(2000)):
                    await asyncio.to_thread(guest.udp, GATEWAY_IP, 53, 0.05, garbage)
                    await asyncio.to_thread(guest.udp, GATEWAY_IP, 123, 0.05, garbage)
                assert await ask(guest) == answer(QUERY)

    run(scene())


def test_time_is_the_hosts(here: w.World, resolv_conf: Path) -> None:
    async def scene() -> None:
        async with one_guest(here, resolv_conf) as (_, guest):
            before = time.time()
            reply = await asyncio.to_thread(w.inside, guest.name, ask_time)
            after = time.time()
            seconds, fraction = struct.unpack("!II", reply[40:48])
            assert before <= seconds - 2_208_988_800 + fraction / 2**32 <= after

    run(scene())


def ask_time() -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        packets.settimeout(5)
        packets.connect((GATEWAY_IP, 123))
        packets.send(b"\x23" + bytes(47))
        return packets.recv(1000)


def test_chronyd_accepts_the_server(here: w.World, resolv_conf: Path) -> None:
    async def scene() -> None:
        async with one_guest(here, resolv_conf) as (_, guest):
            command = ("ip", "netns", "exec", guest.name, "chronyd", "-Q", "-u", "root", "-t", "20", SERVER)
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            async with asyncio.timeout(30):
                output, _ = await process.communicate()
            assert b"System clock wrong by" in output, output

    run(scene())


SERVER = f"server {GATEWAY_IP} iburst minpoll -2 maxpoll 1"
