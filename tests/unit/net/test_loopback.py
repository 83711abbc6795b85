import asyncio
import os
from contextlib import AsyncExitStack
from ipaddress import IPv4Address

import pytest

from wrenn_sandbox.core.errors import Conflict, Exhausted, Invalid
from wrenn_sandbox.core.slots import LAST_SLOT
from wrenn_sandbox.core.spec import Egress, NetworkPolicy
from wrenn_sandbox.net.loopback import LOOPBACK_POOL, LoopbackNetwork


def test_slots_are_loopback_addresses_without_a_tap() -> None:
    async def scene() -> None:
        async with LoopbackNetwork(first=300) as network, network.link(NetworkPolicy()) as link:
            assert (link.slot.index, link.slot.host_ip, link.tap_fd) == (300, "127.11.1.44", None)
            assert link.slot.uid == os.getuid()

    asyncio.run(scene())


def test_each_link_is_its_own_slot_and_all_lie_in_the_pool() -> None:
    async def scene() -> None:
        async with LoopbackNetwork() as network, AsyncExitStack() as stack:
            links = [await stack.enter_async_context(network.link(NetworkPolicy())) for _ in range(5)]
            assert len({link.slot.host_ip for link in links}) == 5
            assert all(IPv4Address(link.slot.host_ip) in LOOPBACK_POOL for link in links)

    asyncio.run(scene())


def test_the_limit_is_said_and_a_slot_comes_back() -> None:
    async def scene() -> None:
        network = LoopbackNetwork(limit=1, first=LAST_SLOT)
        async with network.link(NetworkPolicy()):
            with pytest.raises(Exhausted) as caught:
                async with network.link(NetworkPolicy()):
                    pass
            assert caught.value.slug == "host_full"
        async with network.link(NetworkPolicy()) as link:
            assert link.slot.index == 1

    asyncio.run(scene())


def test_policies_are_checked_and_remembered() -> None:
    async def scene() -> None:
        network = LoopbackNetwork()
        with pytest.raises(Invalid):
            async with network.link(NetworkPolicy(deny_out=("nonsense",))):
                pass
        async with network.link(NetworkPolicy()) as link:
            await link.apply(NetworkPolicy(Egress.CLOSED))
            with pytest.raises(Invalid):
                await link.apply(NetworkPolicy(deny_out=("nonsense",)))
            assert link.policy == NetworkPolicy(Egress.CLOSED)
        assert await network.sweep() == 0

    asyncio.run(scene())


def test_a_reserved_slot_is_nobody_elses_until_it_was_adopted_or_is_given_up() -> None:
    async def scene() -> None:
        network = LoopbackNetwork(first=300)
        network.reserve([300, 301, LAST_SLOT + 1])
        async with network.link(NetworkPolicy()) as link:
            assert link.slot.index == 302
        async with network.adopt(300, NetworkPolicy()) as link:
            assert link.slot.index == 300
            with pytest.raises(Conflict):
                async with network.adopt(300, NetworkPolicy()):
                    pass
            await network.give_up(300)
            with pytest.raises(Conflict):
                async with network.adopt(300, NetworkPolicy()):
                    pass
        await network.give_up(301)
        assert network._numbers._taken == set() and network._reserved == set()

    asyncio.run(scene())
