"""What a guest must not reach, each tried, and each shown to answer when nothing filters."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import pytest

from wrenn_sandbox.core.slots import FIRST_VMM_UID, GATEWAY_IP, GATEWAY_MAC, GUEST_IP, GUEST_MAC
from wrenn_sandbox.core.spec import NetworkPolicy
from wrenn_sandbox.net import namespace, nftables
from wrenn_sandbox.net.firewall import host_rules_removal, host_table
from wrenn_sandbox.net.pool import NamespacePool, PoolOptions
from wrenn_sandbox.net.slotlink import SlotLink

from . import world as w

pytestmark = pytest.mark.platform

#: At once, by TCP reset or ICMP; never an answer, never silence.
REFUSED = {"ECONNREFUSED", "EHOSTUNREACH", "EACCES"}


@asynccontextmanager
async def two_guests(here: w.World) -> AsyncIterator[tuple[SlotLink, w.Guest, SlotLink, w.Guest]]:
    options = PoolOptions(tag=here.tag, warm=2)
    async with NamespacePool(options) as pool, pool.link(NetworkPolicy()) as a, pool.link(NetworkPolicy()) as b:
        with (
            w.guest(f"{here.tag}-g1", a.tap_fd) as guest_a,
            w.guest(f"{here.tag}-g2", b.tap_fd) as guest_b,
            w.echo(guest_a.name),
            w.echo(guest_b.name),
        ):
            yield a, guest_a, b, guest_b


def forbidden(own: SlotLink, other: SlotLink) -> dict[str, str]:
    """Every address that a guest must not reach, by what it is."""
    return {
        "another guest": other.slot.host_ip,
        "another slot's inner end": other.slot.peer_ip,
        "another slot's host end": other.slot.veth_ip,
        "its own host end": own.slot.veth_ip,
        "its own inner end": own.slot.peer_ip,
        "its own outer address": own.slot.host_ip,
        "the host's uplink address": w.UPLINK_ADDRESS,
        "the host's LAN address": w.LAN_ADDRESS,
        "the host's second public address": w.SECOND_PUBLIC_ADDRESS,
        "the host's LAN neighbour": w.LAN_NEIGHBOUR,
        **{f"private {target}": target for target in w.PRIVATE_TARGETS},
    }


def test_nothing_closed_is_reached(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (a, guest, b, _):
            for name, address in forbidden(a, b).items():
                assert guest.tcp(address) in REFUSED, name
                assert guest.udp(address) in REFUSED, name
            assert guest.tcp(w.PUBLIC_TARGETS[0]) == w.UPLINK_ADDRESS, "the way out itself works"
            assert guest.udp(w.PUBLIC_TARGETS[1]) == w.UPLINK_ADDRESS

    asyncio.run(scene())


def test_the_host_alone_refuses_what_a_namespace_lets_through(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (a, guest, b, _):
            open_namespace(a)
            targets = forbidden(a, b)
            for name in ("its own inner end", "its own outer address"):
                del targets[name]  # these end in the namespace
            for name, address in targets.items():
                assert guest.tcp(address) in REFUSED, name
                # The host sends one ICMP error a second to an address (net.ipv4.icmp_ratelimit), and it stays so.
                assert guest.udp(address, timeout_s=0.2) in {*REFUSED, "timeout"}, name
            assert guest.tcp(w.PUBLIC_TARGETS[0]) == w.UPLINK_ADDRESS

    asyncio.run(scene())


def test_every_target_answers_when_nothing_filters(here: w.World) -> None:
    """The proof that the two tests above test something."""

    async def scene() -> None:
        async with two_guests(here) as (a, guest, b, _):
            open_namespace(a)
            open_host(here)
            targets = forbidden(a, b)
            for name in ("another slot's inner end", "its own inner end", "its own outer address", "another guest"):
                del targets[name]  # nobody listens, or the other namespace takes connections from its host only
            for name, address in targets.items():
                assert guest.tcp(address) not in {*REFUSED, "timeout"}, name
                assert guest.udp(address) not in {*REFUSED, "timeout"}, name
            assert guest.tcp(b.slot.host_ip) == "timeout", "the other namespace guards its guest by itself"
            rules = f"insert rule inet sandbox to_guest ip daddr {b.slot.host_ip} dnat ip to {GUEST_IP}"
            namespace.run_inside(b.slot.netns, lambda: nftables.transact(rules))
            assert guest.tcp(b.slot.host_ip) == a.slot.peer_ip

    asyncio.run(scene())


def test_loopback_and_odd_addresses_stay_inside(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (a, guest, _, _):
            w.run("ip", "netns", "exec", guest.name, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
            guest.ip("rule", "add", "from", "all", "lookup", "main", "priority", "0")
            guest.ip("rule", "delete", "priority", "0", "table", "local")
            guest.ip("rule", "add", "from", "all", "lookup", "local", "priority", "10")
            for address in ("127.0.0.1", "127.1.2.3", "0.1.2.3", "240.0.0.1", "255.255.255.254", GUEST_IP):
                assert guest.tcp(address, timeout_s=0.5) not in {w.UPLINK_ADDRESS, a.slot.peer_ip, GUEST_IP}, address

    asyncio.run(scene())


def test_gateway_serves_time_and_names_only(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (a, guest, _, _):
            with w.echo(a.slot.netns), w.echo(a.slot.netns, 80):
                for port in (w.ECHO, 80, 22, 5355):
                    assert guest.tcp(GATEWAY_IP, port) in REFUSED, port
                    assert guest.udp(GATEWAY_IP, port) in REFUSED, port

    asyncio.run(scene())


def test_forged_frames_are_dropped_on_the_tap(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (a, guest, b, _):
            count_on_tap(a)
            frames = forged_frames(b)
            guest.ip("link", "set", "eth0", "arp", "off")
            for frame in frames.values():
                send_frame(guest, frame)
            send_frame(guest, ipv4_frame(GUEST_MAC, GUEST_IP, w.PUBLIC_TARGETS[0]))
            await until_counted(a, "honest", 1)
            assert counted(a, "forged") == 0
            namespace.run_inside(a.slot.netns, lambda: nftables.transact("delete table netdev sandbox"))
            for frame in frames.values():
                send_frame(guest, frame)
            await until_counted(a, "forged", len(frames))

    asyncio.run(scene())


def test_a_guest_cannot_take_over_the_gateways_view_of_it(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (a, guest, _, _):
            send_frame(guest, arp_frame(GUEST_MAC, "02:aa:aa:aa:aa:aa", GUEST_IP))
            guest.ip("link", "set", "eth0", "address", "02:aa:aa:aa:aa:aa")
            assert guest.tcp(w.PUBLIC_TARGETS[0], timeout_s=0.5) in {"timeout", "EHOSTUNREACH"}
            neighbours = w.run("ip", "-n", a.slot.netns, "neigh", "show", GUEST_IP)
            assert GUEST_MAC in neighbours
            assert "PERMANENT" in neighbours

    asyncio.run(scene())


def test_only_root_and_the_agent_reach_guests(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (a, _, _, _):
            assert w.tcp(a.slot.host_ip) == a.slot.veth_ip
            assert w.udp(a.slot.host_ip) == a.slot.veth_ip
            assert tcp_as(65534, a.slot.host_ip) in REFUSED
            assert tcp_as(65534, w.PUBLIC_TARGETS[0]) == w.UPLINK_ADDRESS, (
                "other users' own traffic is not ours to judge"
            )

    asyncio.run(scene())


def test_the_uid_of_a_vmm_reaches_nothing(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (a, _, b, _):
            targets = [a.slot.host_ip, b.slot.host_ip, w.UPLINK_ADDRESS, "127.0.0.1", w.LAN_NEIGHBOUR]
            for address in (*targets, *w.PRIVATE_TARGETS, *w.PUBLIC_TARGETS):
                assert tcp_as(0, address) not in REFUSED, address
                assert tcp_as(FIRST_VMM_UID + a.slot.index, address) in REFUSED, address

    asyncio.run(scene())


def test_neighbours_of_the_host_do_not_reach_guests(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (a, _, _, _):
            namespace.write_sysctl("ipv4/conf/lan0/forwarding", "1")
            for address in (a.slot.host_ip, a.slot.peer_ip):
                assert w.inside(here.lan, lambda to=address: w.tcp(to, timeout_s=0.5)) == "timeout"
            open_host(here)
            open_namespace(a)
            assert w.inside(here.lan, lambda: w.tcp(a.slot.host_ip)) == w.LAN_NEIGHBOUR
            namespace.write_sysctl("ipv4/conf/lan0/forwarding", "0")

    asyncio.run(scene())


def test_a_host_that_is_no_router_does_not_become_one(here: w.World) -> None:
    async def scene() -> None:
        async with two_guests(here) as (_, guest, _, _):
            assert guest.tcp(w.PUBLIC_TARGETS[0]) == w.UPLINK_ADDRESS
            w.run("ip", "-n", here.internet, "route", "add", "192.168.50.0/24", "via", w.UPLINK_ADDRESS)
            assert w.inside(here.internet, lambda: w.tcp(w.LAN_NEIGHBOUR, timeout_s=0.5)) == "timeout"
            open_host(here)
            assert w.inside(here.internet, lambda: w.tcp(w.LAN_NEIGHBOUR)) == w.ROUTER_ADDRESS

    asyncio.run(scene())


def open_namespace(link: SlotLink) -> None:
    """Only the NAT remains; it also takes connections that do not come from the host."""
    rules = f"""
flush chain inet sandbox forwarded
flush chain inet sandbox services
flush chain inet sandbox to_guest
add rule inet sandbox forwarded accept
add rule inet sandbox services accept
add rule inet sandbox to_guest iifname "eth0" ip daddr {link.slot.host_ip} dnat ip to {GUEST_IP}
"""
    namespace.run_inside(link.slot.netns, lambda: nftables.transact(rules))


def open_host(here: w.World) -> None:
    """Masquerade alone; the pool finds its table anyway when it removes it."""
    nftables.transact(host_rules_removal(here.tag))
    table = host_table(here.tag)
    nftables.transact(
        f"table ip {table} {{ chain out {{ type nat hook postrouting priority srcnat; "
        f'ip saddr 10.12.0.0/16 oifname {{ "up0", "lan0" }} masquerade\n }}\n }}'
    )
    namespace.write_sysctl("ipv4/conf/lan0/forwarding", "1")


@pytest.fixture(autouse=True)
def _close_host(here: w.World):
    yield
    table = host_table(here.tag)
    nftables.transact(f"table ip {table}\ndelete table ip {table}\n")
    namespace.write_sysctl("ipv4/conf/lan0/forwarding", "0")


def tcp_as(uid: int, address: str) -> str:
    """``world.tcp`` from a process of another user."""
    code = (
        "import socket,errno\n"
        f"try: print(socket.create_connection(({address!r},{w.ECHO}),timeout=1).recv(99).decode())\n"
        "except OSError as e: print(errno.errorcode.get(e.errno or 0, 'timeout'))"
    )
    return w.run("setpriv", f"--reuid={uid}", "--clear-groups", "/usr/bin/python3", "-c", code).strip()


def count_on_tap(link: SlotLink) -> None:
    """Count behind the guard what it lets through, by whether it is the guest's own."""
    rules = f"""
table netdev probe {{
	counter honest {{ }}
	counter forged {{ }}
	chain seen {{
		type filter hook ingress device "tap0" priority 500; policy accept;
		ether saddr {GUEST_MAC} ether type ip ip saddr {GUEST_IP} counter name honest accept
		counter name forged
	}}
}}
"""
    namespace.run_inside(link.slot.netns, lambda: nftables.transact(rules))


def counted(link: SlotLink, name: str) -> int:
    found = namespace.run_inside(link.slot.netns, lambda: nftables.query(f"list counter netdev probe {name}"))
    return next(entry["counter"]["packets"] for entry in found if "counter" in entry)


async def until_counted(link: SlotLink, name: str, least: int) -> None:
    async with asyncio.timeout(5):
        while counted(link, name) < least:
            await asyncio.sleep(0.02)


def forged_frames(other: SlotLink) -> dict[str, bytes]:
    """Frames that a hostile guest may send, by what is false in them."""
    target = w.PUBLIC_TARGETS[0]
    honest = ipv4_frame(GUEST_MAC, GUEST_IP, target)
    return {
        "source MAC": ipv4_frame("02:aa:aa:aa:aa:aa", GUEST_IP, target),
        "the gateway's MAC": ipv4_frame(GATEWAY_MAC, GUEST_IP, target),
        "source of another slot": ipv4_frame(GUEST_MAC, other.slot.peer_ip, target),
        "source of the host": ipv4_frame(GUEST_MAC, w.UPLINK_ADDRESS, target),
        "source of the gateway": ipv4_frame(GUEST_MAC, GATEWAY_IP, GUEST_IP),
        "source loopback": ipv4_frame(GUEST_MAC, "127.0.0.1", GATEWAY_IP),
        "ARP for the gateway's address": arp_frame(GUEST_MAC, GUEST_MAC, GATEWAY_IP),
        "ARP with another MAC": arp_frame(GUEST_MAC, "02:aa:aa:aa:aa:aa", GUEST_IP),
        "IPv6": ethernet(GUEST_MAC, 0x86DD, ipv6_packet()),
        "IPv6 in a VLAN": ethernet(GUEST_MAC, 0x8100, struct.pack("!HH", 7, 0x86DD) + ipv6_packet()),
        "forged IPv4 in a VLAN": ethernet(
            GUEST_MAC, 0x8100, struct.pack("!HH", 0, 0x0800) + ipv4_frame(GUEST_MAC, other.slot.peer_ip, target)[14:]
        ),
        "two VLAN tags": ethernet(GUEST_MAC, 0x88A8, struct.pack("!HHHH", 7, 0x8100, 8, 0x0800) + honest[14:]),
        "LLDP": ethernet(GUEST_MAC, 0x88CC, bytes(46)),
        "spanning tree": ethernet(GUEST_MAC, 38, bytes(46)),
        "PPPoE": ethernet(GUEST_MAC, 0x8864, bytes(46)),
    }


def ethernet(source: str, kind: int, payload: bytes) -> bytes:
    return mac(GATEWAY_MAC) + mac(source) + struct.pack("!H", kind) + payload.ljust(46, b"\0")


def ipv4_frame(source_mac: str, source: str, target: str) -> bytes:
    """A UDP packet to a port where nobody is."""
    body = struct.pack("!HHHH", 40000, 9, 12, 0) + b"test"
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0, ip(source), ip(target))
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return ethernet(source_mac, 0x0800, head + body)


def ipv6_packet() -> bytes:
    body = struct.pack("!HHHH", 40000, 9, 12, 0) + b"test"
    ends = socket.inet_pton(socket.AF_INET6, "fe80::1") + socket.inet_pton(socket.AF_INET6, "ff02::1")
    return struct.pack("!IHBB", 6 << 28, len(body), 17, 64) + ends + body


def arp_frame(source_mac: str, sender_mac: str, sender_ip: str) -> bytes:
    """A gratuitous reply that claims ``sender_ip`` for ``sender_mac``."""
    claim = mac(sender_mac) + ip(sender_ip)
    return ethernet(source_mac, 0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + claim + claim)


def send_frame(guest: w.Guest, frame: bytes) -> None:
    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(frame)

    namespace.run_inside(guest.name, send)


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(text: str) -> bytes:
    return IPv4Address(text).packed


def checksum(head: bytes) -> int:
    total = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
