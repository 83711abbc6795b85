"""The host's own side: what we need to know of it, its table of rules, and forwarding on its uplinks.

Forwarding is switched on for single interfaces, never for the whole host: each slot's veth, and the uplinks.
``net.ipv4.ip_forward`` itself is only read. An uplink that did not forward before has a mark under /run, which outlives
an agent that crashes; the last agent to leave the host turns every marked uplink back.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import structlog
from pyroute2 import IPRoute

from wrenn_sandbox.core.slots import AddressPools
from wrenn_sandbox.net import namespace, nftables
from wrenn_sandbox.net.firewall import HostFacts, host_rules, host_rules_removal

_log = structlog.get_logger()
_SYS_NET = Path("/proc/sys/net")
#: One empty file an uplink: inode of the network namespace, "-", interface.
_MARKS = Path("/run/wrenn-net")


@dataclass(frozen=True, slots=True)
class HostRoute:
    """One IPv4 route of the main table, or one address, of the host."""

    network: IPv4Network
    interface: str


def read_facts(pools: AddressPools) -> HostFacts:
    """Look at the calling thread's namespace. Blocks for about a millisecond."""
    with IPRoute() as netlink:
        defaults = list(netlink.get_default_routes(family=socket.AF_INET, table=254))
        addresses = [_address(message) for message in netlink.get_addr(family=socket.AF_INET)]
    uplinks = {name for message in defaults for name in _outgoing(message)}
    own = {address for address in addresses if not (address in pools.links or address.is_loopback)}
    return HostFacts(uplinks=tuple(sorted(uplinks)), addresses=tuple(sorted(own)), router=_forwards("all"))


def read_routes() -> list[HostRoute]:
    """Every IPv4 route of the main table except default routes, and every address with its prefix."""
    found = []
    with IPRoute() as netlink:
        for message in netlink.get_routes(family=socket.AF_INET, table=254):
            destination = message.get_attr("RTA_DST")
            if destination:
                network = IPv4Network(f"{destination}/{message['dst_len']}", strict=False)
                found += [HostRoute(network, name) for name in _outgoing(message)]
        for message in netlink.get_addr(family=socket.AF_INET):
            network = IPv4Network(f"{_address(message)}/{message['prefixlen']}", strict=False)
            found.append(HostRoute(network, _interface_name(message["index"])))
    return found


@dataclass(slots=True)
class HostSide:
    """The table and the switches of one agent. Every method blocks and belongs in a worker thread."""

    tag: str
    pools: AddressPools
    agent_uid: int
    facts: HostFacts = field(default_factory=HostFacts)

    def set_up(self) -> None:
        """Put table and switches in force. Raises WrennError or OSError; ``tear_down`` undoes what was done."""
        self.facts = read_facts(self.pools)
        nftables.transact(host_rules(self.tag, self.pools, self.facts, self.agent_uid))
        self._forward()
        if not self.facts.uplinks:
            _log.warning("network.no_uplink", message="The host has no default route; sandboxes cannot reach out.")

    def refresh(self) -> bool:
        """Follow changes of uplinks, addresses and routing; returns whether there were any."""
        facts = read_facts(self.pools)
        changed = facts != self.facts
        if changed:
            nftables.transact(host_rules(self.tag, self.pools, facts, self.agent_uid))
            self.facts = facts
            _log.info("network.host_changed", uplinks=facts.uplinks, router=facts.router)
        self._forward()
        return changed

    def tear_down(self) -> None:
        """Remove the table and turn the switches back, unless someone else relies on them by now."""
        nftables.transact(host_rules_removal(self.tag))
        stop_forwarding()

    def _forward(self) -> None:
        for name in self.facts.uplinks:
            if not _forwards(name):
                _MARKS.mkdir(mode=0o700, exist_ok=True)
                (_MARKS / f"{_namespace_id()}-{name}").touch()
                namespace.write_sysctl(f"ipv4/conf/{name}/forwarding", "1")
                _log.info("network.forwarding_on", interface=name)


def stop_forwarding() -> None:
    """Turn back every uplink that an agent switched on, when no agent has a slot here and the host is no router."""
    if any(namespace.is_slot_link(name) for _, name in socket.if_nameindex()) or not _MARKS.is_dir():
        return
    prefix = f"{_namespace_id()}-"
    for mark in [mark for mark in _MARKS.iterdir() if mark.name.startswith(prefix)]:
        if not _forwards("all"):
            namespace.write_sysctl(f"ipv4/conf/{mark.name.removeprefix(prefix)}/forwarding", "0")
        mark.unlink(missing_ok=True)
    with suppress(OSError):  # another namespace's marks are there
        _MARKS.rmdir()


def _namespace_id() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def _forwards(scope: str) -> bool:
    try:
        return (_SYS_NET / "ipv4/conf" / scope / "forwarding").read_text().strip() == "1"
    except FileNotFoundError:
        return False


def _address(message: Any) -> IPv4Address:
    # On a point-to-point link IFA_ADDRESS is the other end (rtnetlink(7)).
    return IPv4Address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


def _outgoing(message: Any) -> list[str]:
    index = message.get_attr("RTA_OIF")
    indexes = [index] if index else [hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or []]
    return [name for name in map(_interface_name, indexes) if name]


def _interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # gone since
        return ""
