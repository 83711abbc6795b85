"""The life of slots: ready at once, gone without trace, repaired after a crash, side by side with other agents."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Conflict, Exhausted, Invalid, Unavailable
from wrenn_sandbox.core.slots import DEFAULT_POOLS, AddressPools, slot
from wrenn_sandbox.core.spec import Egress, NetworkPolicy
from wrenn_sandbox.net import conflicts, namespace, nftables
from wrenn_sandbox.net.firewall import host_table
from wrenn_sandbox.net.host import HostSide, read_facts
from wrenn_sandbox.net.pool import NamespacePool, PoolOptions
from wrenn_sandbox.net.slotlink import SlotLink

from . import world as w

pytestmark = pytest.mark.platform

CRASHING_AGENT = """
import asyncio, sys, json
from wrenn_sandbox.core.spec import NetworkPolicy
from wrenn_sandbox.net.pool import NamespacePool, PoolOptions
async def main():
    async with NamespacePool(PoolOptions(tag=sys.argv[1], warm=2)) as pool, pool.link(NetworkPolicy()) as link:
        print("slot", link.slot.index, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def crashed_agent(tag: str) -> int:
    """Start an agent that uses one slot and keeps two, and kill it; the number of the slot in use."""
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASHING_AGENT, tag, stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None
    try:
        async with asyncio.timeout(20):
            while not (line := await agent.stdout.readline()).startswith(b"slot"):
                assert line, "it ended"
        await until(lambda: len(namespace.links(tag)) == 3)
    finally:
        agent.send_signal(signal.SIGKILL)
        await agent.wait()
    return int(line.split()[1])


async def until(condition, limit_s: float = 15) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)


def test_many_at_once_and_nothing_left(here: w.World) -> None:
    async def scene() -> None:
        async with NamespacePool(PoolOptions(tag=here.tag, warm=2)) as pool, AsyncExitStack() as stack:
            links = [await stack.enter_async_context(pool.link(NetworkPolicy())) for _ in range(12)]
            assert len({link.slot.index for link in links}) == 12
            assert len({link.tap_fd for link in links}) == 12
            await until(lambda: len(namespace.names(here.tag)) == 14)  # and two kept warm

    asyncio.run(scene())


def test_a_slot_of_a_dead_agent_is_taken_over_with_its_machine(here: w.World) -> None:
    async def scene() -> None:
        number = await crashed_agent(here.tag)
        async with NamespacePool(PoolOptions(tag=here.tag, warm=1)) as pool:
            async with pool.adopt(number, NetworkPolicy(Egress.CLOSED)) as link:
                assert (link.slot.index, link.tap_fd) == (number, None)
                assert link.slot.netns in namespace.names(here.tag)
                with pytest.raises(Conflict):
                    async with pool.adopt(number, NetworkPolicy()):
                        pass
                await pool.sweep()
                assert namespace.is_whole(link.slot)
                async with pool.link(NetworkPolicy()) as other:
                    assert other.slot.index != number
            await until(lambda: link.slot.netns not in namespace.names(here.tag))
            with pytest.raises(Unavailable) as caught:
                async with pool.adopt(number + 40, NetworkPolicy()):
                    pass
            assert caught.value.slug == "network_lost"

    asyncio.run(scene())


def test_a_reserved_slot_outlives_sweeps_and_adoptions_that_fail(
    here: w.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(link: SlotLink, policy: NetworkPolicy) -> None:
        raise Unavailable("no", slug="network_setup_failed")

    async def scene() -> None:
        number = await crashed_agent(here.tag)
        the_slot = slot(number, tag=here.tag)
        async with NamespacePool(PoolOptions(tag=here.tag, warm=1)) as pool:
            pool.reserve([number])
            await pool.sweep()
            assert namespace.is_whole(the_slot)
            with monkeypatch.context() as patched, pytest.raises(Unavailable):
                patched.setattr(SlotLink, "apply", refuse)
                async with pool.adopt(number, NetworkPolicy()):
                    pass
            await until(lambda: number not in pool._kept)
            assert namespace.is_whole(the_slot)
            async with pool.adopt(number, NetworkPolicy(Egress.CLOSED)) as link:
                assert link.slot == the_slot and namespace.is_whole(the_slot)
            await until(lambda: the_slot.netns not in namespace.names(here.tag))

    asyncio.run(scene())


def test_a_reserved_slot_that_is_given_up_goes(here: w.World) -> None:
    async def scene() -> None:
        number = await crashed_agent(here.tag)
        the_slot = slot(number, tag=here.tag)
        async with NamespacePool(PoolOptions(tag=here.tag, warm=1)) as pool:
            pool.reserve([number])
            await pool.give_up(number)
            assert the_slot.netns not in namespace.names(here.tag) and the_slot.veth not in namespace.links(here.tag)
            await pool.sweep()

    asyncio.run(scene())


def test_many_slots_of_dead_agents_are_taken_over_at_once(here: w.World) -> None:
    async def scene() -> None:
        await crashed_agent(here.tag)
        numbers = [int(name.rpartition("-")[2]) for name in namespace.names(here.tag)]
        assert len(numbers) == 3
        async with NamespacePool(PoolOptions(tag=here.tag, warm=3)) as pool:

            async def take(number: int) -> None:
                async with pool.adopt(number, NetworkPolicy()) as link:
                    assert link.slot.index == number

            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                for number in numbers:
                    group.create_task(take(number))
            await pool.sweep()

    asyncio.run(scene())


def test_a_released_slot_goes_and_a_fresh_one_takes_its_place(here: w.World) -> None:
    async def scene() -> None:
        async with NamespacePool(PoolOptions(tag=here.tag, warm=1)) as pool:
            async with pool.link(NetworkPolicy(Egress.CLOSED)) as link:
                name, veth = link.slot.netns, link.slot.veth
            await until(lambda: name not in namespace.names(here.tag) and veth not in namespace.links(here.tag))
            async with pool.link(NetworkPolicy()) as link:
                assert link.slot.netns != name

    asyncio.run(scene())


def test_exhaustion_is_said_and_passes(here: w.World) -> None:
    async def scene() -> None:
        async with NamespacePool(PoolOptions(tag=here.tag, warm=1, limit=2)) as pool:
            async with pool.link(NetworkPolicy()), pool.link(NetworkPolicy()):
                with pytest.raises(Exhausted) as caught:
                    async with pool.link(NetworkPolicy()):
                        pass
                assert caught.value.slug == "host_full"
            async with pool.link(NetworkPolicy()):
                pass

    asyncio.run(scene())


def test_numbers_run_out_and_come_back(here: w.World) -> None:
    async def scene() -> None:
        pools = AddressPools(hosts=IPv4Network("10.61.0.0/29"), links=IPv4Network("10.62.0.0/29"))
        async with NamespacePool(PoolOptions(tag=here.tag, pools=pools, warm=0)) as pool:  # three slots in all
            async with AsyncExitStack() as stack:
                for _ in range(3):
                    await stack.enter_async_context(pool.link(NetworkPolicy()))
                with pytest.raises(Exhausted) as caught:
                    await stack.enter_async_context(pool.link(NetworkPolicy()))
                assert caught.value.slug == "host_full"
            await until(lambda: not namespace.names(here.tag))
            async with pool.link(NetworkPolicy()) as link:
                assert link.slot.host_ip.startswith("10.61.0.")

    asyncio.run(scene())


def test_a_bad_policy_costs_no_slot(here: w.World) -> None:
    async def scene() -> None:
        async with NamespacePool(PoolOptions(tag=here.tag, warm=1, limit=1)) as pool:
            with pytest.raises(Invalid) as caught:
                async with pool.link(NetworkPolicy(deny_out=("nonsense; flush ruleset",))):
                    pass
            assert caught.value.slug == "invalid_network_policy"
            async with pool.link(NetworkPolicy()):
                pass

    asyncio.run(scene())


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.01, 0.03, 0.1])
def test_cancelled_takers_leave_nothing(here: w.World, delay_s: float) -> None:
    async def scene() -> None:
        async with NamespacePool(PoolOptions(tag=here.tag, warm=0, limit=3)) as pool:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(delay_s), pool.link(NetworkPolicy()):
                        await asyncio.sleep(600)
            async with pool.link(NetworkPolicy()), pool.link(NetworkPolicy()), pool.link(NetworkPolicy()):
                pass

    asyncio.run(scene())


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.05, 0.2])
def test_a_cancelled_pool_leaves_nothing(here: w.World, delay_s: float) -> None:
    async def scene() -> None:
        async with NamespacePool(PoolOptions(tag=here.tag, warm=3)) as pool, pool.link(NetworkPolicy()):
            await asyncio.sleep(600)

    async def cut() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay_s):
                await scene()

    asyncio.run(cut())


def test_a_dead_agents_slots_are_swept_and_only_those(here: w.World) -> None:
    async def scene() -> None:
        left = await crashed_agent(here.tag)
        other = f"{here.tag}-nsx"
        w.run("ip", "netns", "add", other)
        try:
            async with NamespacePool(PoolOptions(tag=here.tag, warm=1)) as pool, pool.link(NetworkPolicy()) as link:
                assert link.slot.index != left, "what is left is never handed out"
                await until(lambda: len(namespace.names(here.tag)) == 5)
                assert await pool.sweep() == 6
                assert link.slot.netns in namespace.names(here.tag)
                assert len(namespace.names(here.tag)) == len(namespace.links(here.tag)) == 2
                assert Path(f"/run/netns/{other}").exists()
                with w.guest(f"{here.tag}-g", link.tap_fd) as guest:
                    assert guest.tcp(w.PUBLIC_TARGETS[0]) == w.UPLINK_ADDRESS
        finally:
            w.run("ip", "netns", "delete", other)

    asyncio.run(scene())


def test_sweeping_without_a_running_pool_takes_the_rules_too(here: w.World) -> None:
    async def scene() -> None:
        await crashed_agent(here.tag)
        assert host_table(here.tag) in w.run("nft", "list", "tables")
        assert await NamespacePool(PoolOptions(tag=here.tag)).sweep() >= 2
        assert await NamespacePool(PoolOptions(tag=here.tag)).sweep() == 0

    asyncio.run(scene())


def test_two_agents_share_a_machine_and_its_addresses(here: w.World) -> None:
    async def scene() -> None:
        second = f"{here.tag[:6]}b"
        async with AsyncExitStack() as stack:
            links = []
            for tag in (here.tag, second):
                pool = await stack.enter_async_context(NamespacePool(PoolOptions(tag=tag, warm=1)))
                links += [await stack.enter_async_context(pool.link(NetworkPolicy())) for _ in range(2)]
            assert len({link.slot.index for link in links}) == 4
            with (
                w.guest(f"{here.tag}-g1", links[0].tap_fd) as one,
                w.guest(f"{here.tag}-g2", links[2].tap_fd) as two,
                w.echo(one.name),
                w.echo(two.name),
            ):
                for guest, own, other in ((one, links[0], links[2]), (two, links[2], links[0])):
                    assert guest.tcp(w.PUBLIC_TARGETS[0]) == w.UPLINK_ADDRESS
                    assert guest.tcp(other.slot.host_ip) == "ECONNREFUSED"
                    assert w.tcp(own.slot.host_ip) == own.slot.veth_ip

    asyncio.run(scene())


def test_nothing_of_a_slot_stays_in_the_hosts_connection_table(here: w.World) -> None:
    def remembered(address: str) -> bool:
        table = Path("/proc/thread-self/net/nf_conntrack").read_text()
        return f"={address} " in table

    async def scene() -> None:
        async with NamespacePool(PoolOptions(tag=here.tag, warm=0)) as pool:
            async with pool.link(NetworkPolicy()) as link:
                with w.guest(f"{here.tag}-g", link.tap_fd) as guest, w.echo(guest.name):
                    assert guest.udp(w.PUBLIC_TARGETS[0]) == w.UPLINK_ADDRESS
                    assert w.tcp(link.slot.host_ip) == link.slot.veth_ip
                assert remembered(link.slot.peer_ip)
                assert remembered(link.slot.host_ip)
            await until(lambda: not namespace.names(here.tag))
            assert not remembered(link.slot.peer_ip)
            assert not remembered(link.slot.host_ip)

    asyncio.run(scene())


def test_the_tap_is_as_a_vmm_wants_it(here: w.World) -> None:
    async def scene() -> None:
        async with NamespacePool(PoolOptions(tag=here.tag, warm=0)) as pool, pool.link(NetworkPolicy()) as link:
            flags = Path(f"/proc/self/fdinfo/{link.tap_fd}").read_text()
            assert "iff:\ttap0" in flags
            mode = namespace.run_inside(link.slot.netns, lambda: w.run("ip", "-d", "link", "show", "tap0"))
            assert "tun type tap pi off vnet_hdr on persist on" in mode
            assert "02:fc:00:00:00:06" in mode
            assert not os.get_inheritable(link.tap_fd)

    asyncio.run(scene())


def test_a_pool_that_is_not_up_says_so(here: w.World) -> None:
    async def scene() -> None:
        with pytest.raises(Unavailable) as caught:
            async with NamespacePool(PoolOptions(tag=here.tag)).link(NetworkPolicy()):
                pass
        assert caught.value.slug == "network_down"

    asyncio.run(scene())


def test_a_clash_of_addresses_is_found_before_anything_is_made(here: w.World) -> None:
    async def scene() -> None:
        with pytest.raises(Conflict, match="WRENN_HOST_POOL") as caught:
            async with NamespacePool(PoolOptions(tag=here.tag)):
                pass
        assert caught.value.slug == "address_pool_conflict"

    w.run("ip", "address", "add", "10.11.7.1/24", "dev", "lan0")
    try:
        asyncio.run(scene())
    finally:
        w.run("ip", "address", "delete", "10.11.7.1/24", "dev", "lan0")


def test_dockers_forward_drop_is_found(here: w.World) -> None:
    assert conflicts.find(here.tag, DEFAULT_POOLS) == []
    docker = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop;\n }\n"
    nftables.transact(docker + "chain DOCKER-USER {\n }\n }")
    try:
        (finding,) = conflicts.find(here.tag, DEFAULT_POOLS)
        assert (finding.slug, finding.severity) == ("forward_drop", conflicts.Severity.WARNING)
        assert f"iptables -I DOCKER-USER -i {here.tag}-v+ -j ACCEPT" in finding.message
    finally:
        nftables.transact("delete table ip filter")


def test_what_doctor_tells_to_do_about_docker_helps(here: w.World) -> None:
    async def scene() -> None:
        async with NamespacePool(PoolOptions(tag=here.tag, warm=0)) as pool, pool.link(NetworkPolicy()) as link:
            with w.guest(f"{here.tag}-g", link.tap_fd) as guest:
                nftables.transact(
                    "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop;\n"
                    "jump DOCKER-USER\n }\n chain DOCKER-USER {\n }\n }"
                )
                assert guest.tcp(w.PUBLIC_TARGETS[0]) == "timeout"
                nftables.transact(
                    f'insert rule ip filter DOCKER-USER iifname "{here.tag}-v*" accept\n'
                    f'insert rule ip filter DOCKER-USER oifname "{here.tag}-v*" ct state established,related accept'
                )
                assert guest.tcp(w.PUBLIC_TARGETS[0]) == w.UPLINK_ADDRESS

    try:
        asyncio.run(scene())
    finally:
        nftables.transact("table ip filter\ndelete table ip filter")


def test_the_agent_that_leaves_last_turns_forwarding_back(here: w.World) -> None:
    async def scene() -> None:
        first = NamespacePool(PoolOptions(tag=here.tag, warm=1))
        second = NamespacePool(PoolOptions(tag=f"{here.tag[:6]}b", warm=1))
        await first.__aenter__()
        async with second, second.link(NetworkPolicy()) as link:
            await first.__aexit__(None, None, None)
            with w.guest(f"{here.tag}-g", link.tap_fd) as guest:
                assert guest.tcp(w.PUBLIC_TARGETS[0]) == w.UPLINK_ADDRESS
        assert forwarding() == set()

    asyncio.run(scene())


def forwarding() -> set[str]:
    """Which of the two cables forward."""
    scopes = Path("/proc/sys/net/ipv4/conf")
    return {name for name in ("up0", "lan0") if (scopes / name / "forwarding").read_text() == "1\n"}


def test_the_host_is_followed(here: w.World) -> None:
    host = HostSide(here.tag, DEFAULT_POOLS, 0)
    try:
        host.set_up()
        assert host.facts.uplinks == ("up0",)
        assert {str(address) for address in host.facts.addresses} == {
            w.UPLINK_ADDRESS,
            w.LAN_ADDRESS,
            w.SECOND_PUBLIC_ADDRESS,
        }
        assert forwarding() == {"up0"}
        assert not host.refresh()
        w.run("ip", "route", "replace", "default", "via", w.LAN_NEIGHBOUR)
        assert host.refresh()
        assert host.facts.uplinks == ("lan0",)
        assert 'oifname "lan0" accept' in w.run("nft", "list", "table", "inet", host_table(here.tag))
        assert forwarding() == {"up0", "lan0"}
    finally:
        host.tear_down()
        w.run("ip", "route", "replace", "default", "via", w.ROUTER_ADDRESS)


def test_a_router_stays_one(here: w.World) -> None:
    namespace.write_sysctl("ipv4/ip_forward", "1")
    host = HostSide(here.tag, DEFAULT_POOLS, 0)
    try:
        assert read_facts(DEFAULT_POOLS).router
        host.set_up()
        rules = w.run("nft", "list", "chain", "inet", host_table(here.tag), "forwarded")
        assert 'iifname "up0"' not in rules
    finally:
        host.tear_down()
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
        namespace.write_sysctl("ipv4/ip_forward", "0")
