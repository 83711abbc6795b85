"""What a guest must not reach, each tried, and each shown to answer when nothing filters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from wrenn_sandbox.core.spec import NetworkPolicy
from wrenn_sandbox.net import namespace
from wrenn_sandbox.net.pool import NamespacePool, PoolOptions
from wrenn_sandbox.net.slotlink import SlotLink

from . import world as w

pytestmark = pytest.mark.platform


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


#: At once, by TCP reset or ICMP; never an answer, never silence.
REFUSED = {"ECONNREFUSED", "EHOSTUNREACH", "EACCES"}
