"""A small world in network namespaces: a host of its own, an internet behind its uplink, guests behind taps.

::

    guest ns ── tap ── (frames pumped) ── tap of a link │ host ns ── up0 11.0.0.2/24 ── internet ns: every target
                                                        │         └─ lan0 192.168.50.1/24 ── lan ns 192.168.50.9

The test's main thread enters the host namespace, so the pool under test takes it for the machine. Every target answers
on TCP and UDP port ECHO with the address that it sees the caller have.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import selectors
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wrenn_sandbox.core.slots import GATEWAY_IP, GUEST_IP, GUEST_MAC
from wrenn_sandbox.net import namespace
from wrenn_sandbox.net.tap import ifreq

ECHO = 7777
UPLINK_ADDRESS, ROUTER_ADDRESS = "11.0.0.2", "11.0.0.1"
LAN_ADDRESS, LAN_NEIGHBOUR = "192.168.50.1", "192.168.50.9"
SECOND_PUBLIC_ADDRESS = "11.5.5.5"
PUBLIC_TARGETS = ("8.7.6.5", "9.10.11.12")
PRIVATE_TARGETS = (
    "10.200.0.5",
    "172.20.0.5",
    "192.168.77.5",
    "100.64.1.1",
    "169.254.169.254",
    "198.18.0.9",
    "192.0.2.77",
    "203.0.113.7",
    "168.63.129.16",
)
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_IP_PKTINFO = 8  # linux/in.h


def run(*command: str) -> str:
    """A command that must succeed; its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class World:
    """The host namespace is the main thread's; these are the names of the others."""

    tag: str
    internet: str
    lan: str


@contextmanager
def world() -> Iterator[World]:
    """Make everything but the pool and the guests; leave nothing."""
    tag = f"t{os.getpid() % 10_000_000}"
    names = World(tag, f"{tag}-inet", f"{tag}-lan")
    namespace.prepare_directory()
    with ExitStack() as stack:
        for name in (names.internet, names.lan):
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
        stack.enter_context(_own_namespace())
        for scope in ("all", "default"):  # addresses that come and go by themselves would blur the comparison
            namespace.write_sysctl(f"ipv6/conf/{scope}/disable_ipv6", "1")
        run("ip", "link", "set", "lo", "up")
        _cable("up0", names.internet, f"{UPLINK_ADDRESS}/24", f"{ROUTER_ADDRESS}/24")
        _cable("lan0", names.lan, f"{LAN_ADDRESS}/24", f"{LAN_NEIGHBOUR}/24")
        run("ip", "route", "add", "default", "via", ROUTER_ADDRESS)
        run("ip", "address", "add", f"{SECOND_PUBLIC_ADDRESS}/32", "dev", "lo")
        for target in (*PUBLIC_TARGETS, *PRIVATE_TARGETS):
            run("ip", "-n", names.internet, "address", "add", f"{target}/32", "dev", "lo")
        run("ip", "-n", names.lan, "route", "add", "default", "via", LAN_ADDRESS)
        for place in (names.internet, names.lan, None):
            stack.enter_context(echo(place))
        yield names


def _cable(link: str, peer_namespace: str, address: str, peer_address: str) -> None:
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", peer_namespace)
    run("ip", "address", "add", address, "dev", link)
    run("ip", "link", "set", link, "up")
    run("ip", "-n", peer_namespace, "link", "set", "lo", "up")
    run("ip", "-n", peer_namespace, "address", "add", peer_address, "dev", "eth0")
    run("ip", "-n", peer_namespace, "link", "set", "eth0", "up")


@contextmanager
def _own_namespace() -> Iterator[None]:
    """The calling thread, and the threads it starts, live in a new network namespace until this is left."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert _libc.unshare(_CLONE_NEWNET) == 0, ctypes.get_errno()
        try:
            yield
        finally:
            assert _libc.setns(before, _CLONE_NEWNET) == 0, ctypes.get_errno()
    finally:
        os.close(before)


def inside(name: str | None, work: Callable[[], T]) -> T:
    """Run ``work`` in a named namespace, or here for None."""
    return work() if name is None else namespace.run_inside(name, work)


@contextmanager
def echo(name: str | None, port: int = ECHO) -> Iterator[None]:
    """Answer every TCP connection and UDP packet with the caller's address."""

    def bind() -> tuple[socket.socket, socket.socket]:
        stream = socket.create_server(("0.0.0.0", port), backlog=64)
        packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        packets.bind(("0.0.0.0", port))
        # Answer from the address that was asked, which matters on a host with many.
        packets.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        return stream, packets

    stream, packets = inside(name, bind)
    with stream, packets, served({stream: _echo_stream, packets: _echo_packet}):
        yield


def _echo_stream(listener: socket.socket) -> None:
    connection, address = listener.accept()
    with connection, contextlib.suppress(OSError):
        connection.sendall(address[0].encode())


def _echo_packet(packets: socket.socket) -> None:
    with contextlib.suppress(OSError):
        _, ancillary, _, address = packets.recvmsg(2048, 128)
        asked = ancillary[0][2][8:12]  # struct in_pktinfo: ifindex, spec_dst, addr (ip(7))
        source = struct.pack("=I4s4s", 0, asked, b"\0\0\0\0")
        packets.sendmsg([address[0].encode()], [(socket.IPPROTO_IP, _IP_PKTINFO, source)], 0, address)


@contextmanager
def served(handlers: dict[socket.socket, Callable[[socket.socket], None]] | dict[int, Callable[[int], None]]):
    """Call each handler whenever its descriptor is readable, in a thread that ends with the context."""
    stop_read, stop_write = os.pipe()

    def loop() -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(stop_read, selectors.EVENT_READ, None)
            for source, handler in handlers.items():
                selector.register(source, selectors.EVENT_READ, handler)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    key.data(key.fileobj)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        os.write(stop_write, b"x")
        thread.join()
        os.close(stop_read)
        os.close(stop_write)


@dataclass(frozen=True)
class Guest:
    """A namespace that stands in for a VM: its eth0 is a tap whose frames go to and from a link's tap."""

    name: str

    def tcp(self, address: str, port: int = ECHO, timeout_s: float = 1.0) -> str:
        """What the other end says, or how the attempt failed."""
        return inside(self.name, lambda: tcp(address, port, timeout_s))

    def udp(self, address: str, port: int = ECHO, timeout_s: float = 1.0, payload: bytes = b"?") -> str:
        """What the other end answers, or how the attempt failed."""
        return inside(self.name, lambda: udp(address, port, timeout_s, payload))

    def ip(self, *arguments: str) -> None:
        """Run ip(8) inside."""
        run("ip", "-n", self.name, *arguments)


@contextmanager
def guest(name: str, tap_fd: int) -> Iterator[Guest]:
    """A guest on ``tap_fd``, configured as a real one is."""
    run("ip", "netns", "add", name)
    try:
        own = namespace.run_inside(name, _open_plain_tap)
        try:
            made = Guest(name)
            made.ip("link", "set", "lo", "up")
            made.ip("link", "set", "eth0", "address", GUEST_MAC, "up")
            made.ip("address", "add", f"{GUEST_IP}/30", "dev", "eth0")
            made.ip("route", "add", "default", "via", GATEWAY_IP)
            with served({own: _carry(tap_fd), tap_fd: _carry(own)}):
                yield made
        finally:
            os.close(own)
    finally:
        run("ip", "netns", "delete", name)


def _open_plain_tap() -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, ifreq("eth0"))  # TUNSETIFF; goes when closed
    return fd


def _carry(to: int) -> Callable[[int], None]:
    def carry(source: int) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                frame = os.read(source, 70_000)
                with contextlib.suppress(OSError):
                    os.write(to, frame)

    return carry


def tcp(address: str, port: int = ECHO, timeout_s: float = 1.0) -> str:
    """Connect from this thread's namespace and read one answer."""
    try:
        with socket.create_connection((address, port), timeout=timeout_s) as connection:
            return connection.recv(100).decode() or "closed"
    except OSError as error:
        return _failure(error)


def udp(address: str, port: int = ECHO, timeout_s: float = 1.0, payload: bytes = b"?") -> str:
    """Send one packet from this thread's namespace and wait for one answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        packets.settimeout(timeout_s)
        try:
            packets.connect((address, port))
            packets.send(payload)
            return packets.recv(4096).decode(errors="replace")
        except OSError as error:
            return _failure(error)


def _failure(error: OSError) -> str:
    return "timeout" if isinstance(error, TimeoutError) else errno.errorcode.get(error.errno or 0, str(error))


@dataclass(frozen=True)
class Snapshot:
    """What the calling thread's namespace and this process hold."""

    links: tuple[str, ...]
    routes: str
    tables: str
    namespaces: tuple[str, ...]
    forwarding: str
    marks: tuple[str, ...]
    descriptors: tuple[str, ...]
    threads: int

    @classmethod
    def take(cls, tag: str) -> Snapshot:
        namespace_id = Path("/proc/thread-self/ns/net").stat().st_ino
        return cls(
            links=tuple(sorted(name for _, name in socket.if_nameindex())),
            routes=run("ip", "route", "show", "table", "all").replace(" linkdown", ""),  # a veth's carrier comes late
            tables=run("nft", "list", "ruleset"),
            namespaces=tuple(sorted(p.name for p in Path("/run/netns").iterdir() if p.name.startswith(tag))),
            forwarding=run("sysctl", "-a", "-r", r"ipv4\.conf\..*\.forwarding"),
            marks=tuple(p.name for p in Path("/run").glob(f"wrenn-net/{namespace_id}-*")),
            descriptors=_descriptors(),
            threads=threading.active_count(),
        )


def _descriptors() -> tuple[str, ...]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if "/proc/" not in target:
                found.append(f"{link.name} {target}")
    return tuple(sorted(found))
