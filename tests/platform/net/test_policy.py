"""Egress policies, limits, and what becomes of open connections when a policy changes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.spec import Egress, NetworkPolicy
from wrenn_sandbox.net.firewall import Limits
from wrenn_sandbox.net.pool import NamespacePool, PoolOptions
from wrenn_sandbox.net.slotlink import SlotLink

from . import world as w

pytestmark = pytest.mark.platform

FIRST, SECOND = w.PUBLIC_TARGETS
REFUSED = {"ECONNREFUSED", "EHOSTUNREACH", "EACCES"}


@asynccontextmanager
async def one_guest(
    here: w.World, policy: NetworkPolicy, limits: Limits | None = None
) -> AsyncIterator[tuple[SlotLink, w.Guest]]:
    options = PoolOptions(tag=here.tag, warm=1, limits=limits or Limits())
    async with NamespacePool(options) as pool, pool.link(policy) as link:
        with w.guest(f"{here.tag}-g", link.tap_fd) as guest, w.echo(guest.name):
            yield link, guest


def reach(guest: w.Guest) -> list[bool]:
    """Whether each public target answers on TCP and on UDP; a refusal comes at once."""
    answers = [call(target) for target in w.PUBLIC_TARGETS for call in (guest.tcp, guest.udp)]
    assert set(answers) <= {w.UPLINK_ADDRESS, *REFUSED}
    return [answer == w.UPLINK_ADDRESS for answer in answers]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (NetworkPolicy(), [True, True, True, True]),
        (NetworkPolicy(Egress.CLOSED), [False, False, False, False]),
        (NetworkPolicy(Egress.ALLOW_LIST), [False, False, False, False]),
        (NetworkPolicy(Egress.ALLOW_LIST, allow_out=(f"{FIRST}/32",)), [True, True, False, False]),
        (NetworkPolicy(Egress.ALLOW_LIST, allow_out=("9.0.0.0/8", "9.10.11.0/24")), [False, False, True, True]),
        (NetworkPolicy(deny_out=(FIRST,)), [False, False, True, True]),
        (NetworkPolicy(deny_out=("0.0.0.0/0",)), [False, False, False, False]),
    ],
)
def test_policy_decides_what_is_reached(here: w.World, policy: NetworkPolicy, expected: list[bool]) -> None:
    async def scene() -> None:
        async with one_guest(here, policy) as (link, guest):
            assert reach(guest) == expected
            assert w.tcp(link.slot.host_ip) == link.slot.veth_ip, "the host reaches the guest under every policy"

    asyncio.run(scene())


def test_an_allow_list_opens_no_closed_range(here: w.World) -> None:
    async def scene() -> None:
        async with one_guest(here, NetworkPolicy(Egress.ALLOW_LIST, allow_out=("0.0.0.0/0",))) as (_, guest):
            assert reach(guest) == [True] * 4
            for target in (*w.PRIVATE_TARGETS, w.UPLINK_ADDRESS, w.LAN_NEIGHBOUR):
                assert guest.tcp(target) in REFUSED, target

    asyncio.run(scene())


def test_policy_changes_while_in_use(here: w.World) -> None:
    async def scene() -> None:
        async with one_guest(here, NetworkPolicy(Egress.CLOSED)) as (link, guest):
            assert reach(guest) == [False] * 4
            await link.apply(NetworkPolicy())
            assert reach(guest) == [True] * 4
            with pytest.raises(Invalid, match=r"10\.0\.0\.0/99"):
                await link.apply(NetworkPolicy(deny_out=("10.0.0.0/99",)))
            assert reach(guest) == [True] * 4, "a bad policy changes nothing"
            await link.apply(NetworkPolicy(deny_out=(SECOND,)))
            assert reach(guest) == [True, True, False, False]

    asyncio.run(scene())


def test_a_new_policy_cuts_open_connections_and_spares_the_hosts(here: w.World) -> None:
    async def scene() -> None:
        async with one_guest(here, NetworkPolicy()) as (link, guest):
            with ExitStack() as stack:
                out, far_end = connection(stack, here.internet, guest.name, FIRST)
                in_, guest_end = connection(stack, guest.name, None, link.slot.host_ip)
                assert talks(out, far_end)
                assert talks(far_end, out)
                await link.apply(NetworkPolicy(Egress.CLOSED))
                assert not talks(far_end, out), "nothing comes in on it any more"
                assert not talks(out, far_end)
                assert talks(in_, guest_end)
                assert talks(guest_end, in_)

    asyncio.run(scene())


def test_packets_of_an_open_flow_do_not_come_in_after_closing(here: w.World) -> None:
    async def scene() -> None:
        async with one_guest(here, NetworkPolicy()) as (link, guest):
            with ExitStack() as stack:
                far = stack.enter_context(w.inside(here.internet, lambda: packets(("0.0.0.0", 5000))))
                near = stack.enter_context(w.inside(guest.name, lambda: packets(("0.0.0.0", 0))))
                near.sendto(b"open", (FIRST, 5000))
                _, caller = far.recvfrom(100)
                source = stack.enter_context(w.inside(here.internet, lambda: packets((FIRST, 5000))))
                source.sendto(b"in", caller)
                assert near.recv(100) == b"in"
                await link.apply(NetworkPolicy(Egress.CLOSED))
                source.sendto(b"late", caller)
                with pytest.raises(TimeoutError):
                    near.recv(100)

    asyncio.run(scene())


def test_tracked_connections_are_bounded(here: w.World) -> None:
    async def scene() -> None:
        async with one_guest(here, NetworkPolicy(), Limits(tracked_connections=5)) as (link, guest):
            answers = [guest.udp(FIRST, timeout_s=0.3) for _ in range(8)]
            assert answers == [w.UPLINK_ADDRESS] * 5 + ["timeout"] * 3
            assert w.tcp(link.slot.host_ip) == link.slot.veth_ip, "the host still gets in"

    asyncio.run(scene())


def test_new_connections_are_rate_limited(here: w.World) -> None:
    async def scene() -> None:
        limits = Limits(new_connections_per_s=1, new_connections_burst=5)
        async with one_guest(here, NetworkPolicy(), limits) as (_, guest):
            attempts = [guest.udp(FIRST, timeout_s=0.02) for _ in range(60)]
            assert attempts.count(w.UPLINK_ADDRESS) >= 5
            assert attempts.count("timeout") >= 30

    asyncio.run(scene())


def connection(
    stack: ExitStack, server: str | None, client: str | None, address: str
) -> tuple[socket.socket, socket.socket]:
    """An open connection from one namespace to another: the client's end, the server's end."""
    listener = stack.enter_context(w.inside(server, lambda: socket.create_server(("0.0.0.0", 0))))
    port = listener.getsockname()[1]
    near = stack.enter_context(w.inside(client, lambda: socket.create_connection((address, port), timeout=2)))
    far = stack.enter_context(listener.accept()[0])
    for end in (near, far):
        end.settimeout(0.7)
    return near, far


def talks(source: socket.socket, sink: socket.socket) -> bool:
    try:
        source.sendall(b"x")
        return sink.recv(1) == b"x"
    except OSError:
        return False


def packets(address: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
    made.settimeout(0.7)
    return made
