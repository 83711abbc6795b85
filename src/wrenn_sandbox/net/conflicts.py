"""What on this host stands in the way of sandbox networking, each as a finding that says what to do.

``wrenn doctor`` shows all findings; the pool refuses to start on an ERROR and logs a WARNING.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from wrenn_sandbox.core.errors import Conflict, WrennError
from wrenn_sandbox.core.slots import AddressPools
from wrenn_sandbox.net import nftables
from wrenn_sandbox.net.firewall import host_table
from wrenn_sandbox.net.host import HostRoute, read_facts, read_routes
from wrenn_sandbox.net.namespace import is_slot_link, valid_tag

_TUN = Path("/dev/net/tun")
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21  # linux/capability.h
#: The option of each pool, as error messages name it.
HOST_POOL_OPTION = "WRENN_HOST_POOL"
LINK_POOL_OPTION = "WRENN_LINK_POOL"


class Severity(Enum):
    """What a finding means for sandboxes."""

    ERROR = "error"  # none can be made
    WARNING = "warning"  # they work, but not in all they should


@dataclass(frozen=True, slots=True)
class Finding:
    """One obstacle: a stable slug and a sentence that says what to do."""

    slug: str
    message: str
    severity: Severity


def find(tag: str, pools: AddressPools) -> list[Finding]:
    """Look for every obstacle on this host. Blocks for a few milliseconds."""
    findings = [*check_tag(tag), *check_privileges(_capabilities()), *_check_tun()]
    if any(finding.severity is Severity.ERROR for finding in findings):
        return findings  # the rest cannot be looked at
    findings += check_pools(pools, read_routes())
    if not read_facts(pools).uplinks:
        findings.append(
            Finding(
                "no_uplink", "The host has no IPv4 default route; sandboxes reach nothing outside.", Severity.WARNING
            )
        )
    try:
        chains = nftables.query("list chains")
    except WrennError as error:
        return [*findings, Finding(error.slug, error.message, Severity.ERROR)]
    return [*findings, *check_forward_chains(chains, tag)]


def require_clear(findings: Iterable[Finding]) -> None:
    """Raise Conflict with the first ERROR's slug and all their sentences, if there is one."""
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        raise Conflict(" ".join(finding.message for finding in errors), slug=errors[0].slug)


def check_tag(tag: str) -> list[Finding]:
    """A tag must fit an interface name together with a slot's number."""
    if valid_tag(tag):
        return []
    return [Finding("invalid_tag", f"The tag {tag!r} must be 1 to 8 of a-z and 0-9, a letter first.", Severity.ERROR)]


def check_privileges(capabilities: int) -> list[Finding]:
    """``capabilities`` is the effective set as a bit mask (capabilities(7))."""
    missing = [
        name
        for name, bit in (("CAP_NET_ADMIN", _CAP_NET_ADMIN), ("CAP_SYS_ADMIN", _CAP_SYS_ADMIN))
        if not capabilities >> bit & 1
    ]
    if not missing:
        return []
    message = f"Sandbox networking needs {' and '.join(missing)}: run the agent as root."
    return [Finding("missing_privileges", message, Severity.ERROR)]


def check_pools(pools: AddressPools, routes: Iterable[HostRoute]) -> list[Finding]:
    """A pool must not overlap a network that the host already uses. Slots of other agents are no clash."""
    findings = []
    if pools.hosts.overlaps(pools.links):
        message = (
            f"{HOST_POOL_OPTION} {pools.hosts} and {LINK_POOL_OPTION} {pools.links} overlap; set one to another range."
        )
        findings.append(Finding("address_pool_conflict", message, Severity.ERROR))
    strangers = [route for route in routes if not is_slot_link(route.interface)]
    for pool, option in ((pools.hosts, HOST_POOL_OPTION), (pools.links, LINK_POOL_OPTION)):
        clash = next((route for route in strangers if _claims(route.network, pool)), None)
        if clash is not None:
            message = (
                f"The address pool {pool} overlaps {clash.network} on interface {clash.interface}; "
                f"set {option} to a private /16 that this host does not use, for example 10.201.0.0/16."
            )
            findings.append(Finding("address_pool_conflict", message, Severity.ERROR))
    return findings


def check_forward_chains(chains: list[dict[str, Any]], tag: str) -> list[Finding]:
    """Another program's forward chain that drops by default (Docker's) also drops what our table accepts."""
    for entry in chains:
        chain = entry.get("chain", {})
        foreign = chain.get("table") != host_table(tag) and chain.get("family") in ("ip", "inet")
        if foreign and chain.get("hook") == "forward" and chain.get("policy") == "drop":
            docker = any(e.get("chain", {}).get("name") == "DOCKER-USER" for e in chains)
            user_chain = "DOCKER-USER" if docker else "FORWARD"
            message = (
                f"The chain {chain['table']}/{chain['name']} drops forwarded packets"
                f"{' (Docker sets this)' if docker else ''}, so sandboxes cannot reach the internet. Allow them: "
                f"iptables -I {user_chain} -i {tag}-v+ -j ACCEPT; "
                f"iptables -I {user_chain} -o {tag}-v+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
            )
            return [Finding("forward_drop", message, Severity.WARNING)]
    return []


def _claims(network: IPv4Network, pool: IPv4Network) -> bool:
    """Whether a route takes addresses of the pool; a default route takes what nobody else does."""
    return network.overlaps(pool) and network.prefixlen > 0


def _check_tun() -> list[Finding]:
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        reason = "load the kernel module: modprobe tun" if error.errno in (errno.ENOENT, errno.ENODEV) else str(error)
        return [Finding("tun_missing", f"{_TUN} cannot be opened: {reason}.", Severity.ERROR)]
    return []


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
