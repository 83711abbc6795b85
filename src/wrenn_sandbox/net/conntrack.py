"""The host's connection tracking table: what it remembers of a slot goes with the slot."""

from __future__ import annotations

import errno
import socket

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from wrenn_sandbox.core.slots import Slot


def forget(slot: Slot) -> int:
    """Delete every entry of the slot's addresses from the calling thread's namespace; returns how many there were.

    Without it, a connection of one sandbox could outlive it in the host's NAT and meet the next sandbox of the slot.
    """
    outgoing, incoming = NFCTAttrTuple(saddr=slot.peer_ip), NFCTAttrTuple(daddr=slot.host_ip)
    count = 0
    with NFCTSocket() as table:
        for wanted in (outgoing, incoming):
            for message in list(table.dump(tuple_orig=wanted)):
                entry = NFCTAttrTuple.from_netlink(socket.AF_INET, message.get_attr("CTA_TUPLE_ORIG"))
                try:
                    table.entry("del", tuple_orig=entry)
                    count += 1
                except NetlinkError as error:
                    if error.code != errno.ENOENT:  # it has ended by itself
                        raise
    return count
