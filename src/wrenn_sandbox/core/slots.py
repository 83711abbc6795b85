"""Slot arithmetic: a number on a host fixes netns, addresses and the uid of the VMM.

Every sandbox sees the same addresses inside (guest 169.254.0.21, gateway 169.254.0.22), so that a snapshot restores
on any slot; outside, slot ``i`` owns host-reachable address 10.11.0.0 + i and the link pair 10.12.0.0 + 2i, + 2i + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

GUEST_IP = "169.254.0.21"
GATEWAY_IP = "169.254.0.22"
GUEST_PREFIX_LENGTH = 30
GUEST_MAC = "02:fc:00:00:00:05"
#: MAC of the tap's host side, fixed so that the guest's neighbour table in a snapshot stays right on every slot.
GATEWAY_MAC = "02:fc:00:00:00:06"
TAP_NAME = "tap0"
ENVD_PORT = 49983
FIRST_SLOT, LAST_SLOT = 1, 32767
#: First uid of the VMMs' private range; slot i runs as FIRST_VMM_UID + i.
FIRST_VMM_UID = 1_900_000_000


@dataclass(frozen=True, slots=True)
class AddressPools:
    """The two host-side pools; both configurable, since a site may already use these ranges."""

    hosts: IPv4Network
    links: IPv4Network


DEFAULT_POOLS = AddressPools(hosts=IPv4Network("10.11.0.0/16"), links=IPv4Network("10.12.0.0/16"))


@dataclass(frozen=True, slots=True)
class Slot:
    """Everything that follows from a slot's number."""

    index: int
    netns: str
    veth: str
    host_ip: str
    veth_ip: str
    peer_ip: str
    uid: int

    @property
    def gid(self) -> int:
        """Group of the VMM: as its uid, one a slot."""
        return self.uid


def slot(index: int, pools: AddressPools = DEFAULT_POOLS, tag: str = "wrenn") -> Slot:
    """The slot with number ``index`` (1 to 32767); ``tag`` keeps two agents on one machine apart."""
    if not FIRST_SLOT <= index <= LAST_SLOT:
        raise ValueError(f"slot {index} is outside {FIRST_SLOT}..{LAST_SLOT}")
    link = int(pools.links.network_address) + 2 * index
    return Slot(
        index=index,
        netns=f"{tag}-ns-{index}",
        veth=f"{tag[:8]}-v{index}",  # IFNAMSIZ is 16 with the final NUL (linux/if.h)
        host_ip=str(IPv4Address(int(pools.hosts.network_address) + index)),
        veth_ip=str(IPv4Address(link)),
        peer_ip=str(IPv4Address(link + 1)),
        uid=FIRST_VMM_UID + index,
    )
