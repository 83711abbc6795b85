"""The rules of a sandbox's namespace and of the host, as text for one nftables transaction each.

Pure: rendered from parsed addresses only, so that nothing a user wrote reaches the rules unparsed. What replaces older
rules first empties them in the same transaction, so there is no moment without rules.

A packet from a guest passes: ``guard`` (is it really this guest's?), ``forwarded`` → ``outward`` (the closed ranges,
then the sandbox's own policy, then the limits), and on the host ``from_sandbox`` (only to the internet, whatever the
namespace let through). The destination is judged on every packet, not only on a connection's first, so that a new
policy cuts open connections too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError, collapse_addresses

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.slots import (
    FIRST_SLOT,
    FIRST_VMM_UID,
    GATEWAY_IP,
    GUEST_IP,
    GUEST_MAC,
    LAST_SLOT,
    TAP_NAME,
    AddressPools,
    Slot,
)
from wrenn_sandbox.core.spec import Egress, NetworkPolicy

#: Table of a sandbox's namespace, in the families inet and netdev.
SANDBOX_TABLE = "sandbox"
#: Bound on the entries of one list of a policy.
MAX_POLICY_ENTRIES = 1024

#: What no sandbox reaches in any mode: every range that is not globally reachable (IANA IPv4 Special-Purpose Address
#: Registry, RFC 6890), multicast, and the one cloud metadata address that is a public one (Azure's wire server).
CLOSED_NETWORKS = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",
    )
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the rules need to know of the host."""

    #: Interfaces of the default routes: the only way out for sandboxes.
    uplinks: tuple[str, ...] = ()
    #: The host's own addresses, those of slots left out.
    addresses: tuple[IPv4Address, ...] = ()
    #: The host forwards between other interfaces too (``net.ipv4.ip_forward``), so that is not ours to forbid.
    router: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may cost the host's connection tracking (by default 262 144 entries) and our services."""

    new_connections_per_s: int = 200
    new_connections_burst: int = 1000
    tracked_connections: int = 2000
    dns_queries_per_s: int = 200
    dns_queries_burst: int = 400


def parse_networks(entries: Iterable[str]) -> tuple[IPv4Network, ...]:
    """IPv4 addresses and CIDRs, merged and sorted; raises Invalid (``invalid_network_policy``)."""
    networks = []
    for entry in entries:
        try:
            networks.append(IPv4Network(entry, strict=False))
        except (AddressValueError, NetmaskValueError, ValueError):
            raise Invalid(
                f"{entry[:80]!r} in the network policy is not an IPv4 address or CIDR such as 203.0.113.0/24.",
                slug="invalid_network_policy",
            ) from None
        if len(networks) > MAX_POLICY_ENTRIES:
            raise Invalid(
                f"A network policy holds at most {MAX_POLICY_ENTRIES} entries a list.", slug="invalid_network_policy"
            )
    return tuple(collapse_addresses(networks))


def closed_networks(pools: AddressPools, facts: HostFacts) -> tuple[IPv4Network, ...]:
    """Everything closed on this host: the special ranges, the slots' pools and the host's own addresses."""
    own = (IPv4Network(address) for address in facts.addresses)
    return tuple(collapse_addresses([*CLOSED_NETWORKS, pools.hosts, pools.links, *own]))


def sandbox_rules(
    slot: Slot, policy: NetworkPolicy, pools: AddressPools, facts: HostFacts, limits: Limits, *, metadata: bool = False
) -> str:
    """All rules of a new namespace. ``metadata`` opens TCP 80 of the gateway address for the metadata service."""
    closed = _elements(closed_networks(pools, facts))
    return f"""\
{_guard()}
table inet {SANDBOX_TABLE} {{
	set closed {{
		type ipv4_addr
		flags interval
		elements = {closed}
	}}
{_translation(slot)}{_services(limits, metadata=metadata)}{_forwarding(limits)}	chain refuse {{
		limit rate over 200/second burst 200 packets drop
		meta l4proto tcp reject with tcp reset
		reject with icmpx admin-prohibited
	}}
	chain egress {{
	}}
	chain egress_replies {{
	}}
}}
{policy_rules(policy)}"""


def policy_rules(policy: NetworkPolicy) -> str:
    """Replace the policy of a namespace that has ``sandbox_rules``; raises Invalid (``invalid_network_policy``)."""
    allowed, denied = parse_networks(policy.allow_out), parse_networks(policy.deny_out)
    out, back = _policy(policy.egress, allowed, denied)
    lines = [f"flush chain inet {SANDBOX_TABLE} {chain}" for chain in ("egress", "egress_replies")]
    lines += [f"add rule inet {SANDBOX_TABLE} egress {rule}" for rule in out]
    lines += [f"add rule inet {SANDBOX_TABLE} egress_replies {rule}" for rule in back]
    return "\n".join(lines) + "\n"


def host_table(tag: str) -> str:
    """Name of the host's table of one agent."""
    return f"{tag}-net"


def host_rules(tag: str, pools: AddressPools, facts: HostFacts, agent_uid: int) -> str:
    """The host's rules for all sandboxes of ``tag``; they judge no packet that is not to or from one of them."""
    table, links = host_table(tag), f'"{tag}-v*"'
    uplinks = "{ " + ", ".join(f'"{_interface(name)}"' for name in facts.uplinks) + " }"
    out = [f"oifname {uplinks} tcp flags syn tcp option maxseg size set rt mtu", f"oifname {uplinks} accept"]
    back = [f"iifname {uplinks} ct direction reply ct state established,related accept"]
    nat = [f"oifname {uplinks} ip saddr {pools.links} masquerade"]
    # Where we alone made the uplinks forward, nobody else's packets may pass because of it.
    strangers = [] if facts.router else [f"iifname {uplinks} ct state new drop"]
    if not facts.uplinks:
        out = back = nat = strangers = []
    return f"""\
table inet {table}
delete table inet {table}
table inet {table} {{
	set closed {{
		type ipv4_addr
		flags interval
		elements = {_elements(closed_networks(pools, facts))}
	}}
	chain forwarded {{
		type filter hook forward priority filter - 10; policy accept;
		iifname {links} goto from_sandbox
		oifname {links} goto to_sandbox
{_indent(strangers)}	}}
	chain from_sandbox {{
		meta nfproto != ipv4 drop
		ip saddr != {pools.links} drop
		ip daddr @closed goto refuse
{_indent(out)}		goto refuse
	}}
	chain to_sandbox {{
{_indent(back)}		drop
	}}
	chain to_host {{
		type filter hook input priority filter - 10; policy accept;
		iifname != {links} accept
		ct direction reply ct state established,related accept
		goto refuse
	}}
	chain from_host {{
		type filter hook output priority filter - 10; policy accept;
		meta skuid {FIRST_VMM_UID + FIRST_SLOT}-{FIRST_VMM_UID + LAST_SLOT} reject with icmpx admin-prohibited
		oifname {links} meta skuid != {_elements(sorted({0, agent_uid}))} reject with icmpx admin-prohibited
	}}
	chain masqueraded {{
		type nat hook postrouting priority srcnat;
{_indent(nat)}	}}
	chain refuse {{
		limit rate over 1000/second burst 1000 packets drop
		meta l4proto tcp reject with tcp reset
		reject with icmpx admin-prohibited
	}}
}}
"""


def host_rules_removal(tag: str) -> str:
    """Remove the host's table; no error when there is none."""
    table = host_table(tag)
    return f"table inet {table}\ndelete table inet {table}\n"


def _guard() -> str:
    """On the tap, before anything of the stack sees a frame: only the guest's own, only IPv4 and its ARP."""
    return f"""\
table netdev {SANDBOX_TABLE} {{
	chain guard {{
		type filter hook ingress device "{TAP_NAME}" priority filter; policy drop;
		ether saddr != {GUEST_MAC} drop
		arp htype 1 arp ptype ip arp saddr ether {GUEST_MAC} arp saddr ip {GUEST_IP} accept
		ether type ip ip saddr {GUEST_IP} accept
	}}
}}"""


def _translation(slot: Slot) -> str:
    return f"""\
	chain to_guest {{
		type nat hook prerouting priority dstnat;
		iifname "eth0" ip saddr {slot.veth_ip} ip daddr {slot.host_ip} dnat ip to {GUEST_IP}
	}}
	chain from_guest {{
		type nat hook postrouting priority srcnat;
		oifname "eth0" ip saddr {GUEST_IP} snat ip to {slot.peer_ip}
	}}
"""


def _services(limits: Limits, *, metadata: bool) -> str:
    tcp_ports = "{ 53, 80 }" if metadata else "53"
    return f"""\
	chain services {{
		type filter hook input priority filter; policy drop;
		iifname != "{TAP_NAME}" drop
		ct state invalid drop
		ip daddr != {GATEWAY_IP} goto refuse
		udp dport 123 limit rate over 20/second burst 40 packets drop
		udp dport 53 limit rate over {_rate(limits.dns_queries_per_s, limits.dns_queries_burst)} drop
		tcp dport {tcp_ports} ct state new limit rate over 50/second burst 100 packets drop
		udp dport {{ 53, 123 }} accept
		tcp dport {tcp_ports} accept
		icmp type echo-request limit rate 20/second accept
		goto refuse
	}}
"""


def _forwarding(limits: Limits) -> str:
    return f"""\
	chain forwarded {{
		type filter hook forward priority filter; policy drop;
		ct state invalid drop
		iifname "{TAP_NAME}" oifname "eth0" goto outward
		iifname "eth0" oifname "{TAP_NAME}" goto inward
	}}
	chain outward {{
		ct direction reply ct state established,related accept
		ip daddr @closed goto refuse
		jump egress
		ct state new limit rate over {_rate(limits.new_connections_per_s, limits.new_connections_burst)} drop
		ct state new ct count over {limits.tracked_connections} drop
		accept
	}}
	chain inward {{
		ct direction original ct status dnat accept
		ct state related meta l4proto icmp accept
		ct direction reply ct state established jump egress_replies
		ct direction reply ct state established accept
	}}
"""


def _policy(
    egress: Egress, allowed: tuple[IPv4Network, ...], denied: tuple[IPv4Network, ...]
) -> tuple[list[str], list[str]]:
    if egress is Egress.CLOSED or (egress is Egress.ALLOW_LIST and not allowed):
        return ["goto refuse"], ["drop"]
    if egress is Egress.ALLOW_LIST:
        return [f"ip daddr != {_elements(allowed)} goto refuse"], [f"ip saddr != {_elements(allowed)} drop"]
    if denied:
        return [f"ip daddr {_elements(denied)} goto refuse"], [f"ip saddr {_elements(denied)} drop"]
    return [], []


def _elements(values: Iterable[object]) -> str:
    return "{ " + ", ".join(str(value) for value in values) + " }"


def _rate(per_s: int, burst: int) -> str:
    return f"{per_s}/second burst {burst} packets"


def _indent(rules: list[str]) -> str:
    return "".join(f"\t\t{rule}\n" for rule in rules)


def _interface(name: str) -> str:
    """Interface names may hold nearly anything (dev_valid_name in net/core/dev.c); in rules we take the usual ones."""
    if not name or not all(c.isascii() and (c.isalnum() or c in "-_.:@") for c in name):
        raise Invalid(f"The interface name {name!r} cannot be used in firewall rules.", slug="invalid_interface")
    return name
