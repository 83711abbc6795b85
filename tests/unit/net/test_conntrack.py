from __future__ import annotations

import errno
from typing import Any, ClassVar, Self

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from wrenn_sandbox.core.slots import slot
from wrenn_sandbox.net import conntrack


class Entry:
    """A dumped entry; stands for its original tuple too."""

    def __init__(self, saddr: str, daddr: str) -> None:
        self.saddr, self.daddr = saddr, daddr

    def get_attr(self, name: str) -> Entry:
        assert name == "CTA_TUPLE_ORIG"
        return self


class Table:
    """The kernel's table: dumps by address, deletes by tuple."""

    entries: ClassVar[list[Entry]] = []
    vanishing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        pass

    def dump(self, tuple_orig: Any) -> list[Entry]:
        return [e for e in self.entries if e.saddr == tuple_orig.saddr or e.daddr == tuple_orig.daddr]

    def entry(self, command: str, tuple_orig: Entry) -> None:
        assert command == "del"
        Table.entries.remove(tuple_orig)
        if self.vanishing:
            raise NetlinkError(errno.ENOENT)


@pytest.mark.parametrize("vanishing", [False, True])
def test_both_directions_of_the_slot_go_and_nothing_else(monkeypatch: pytest.MonkeyPatch, vanishing: bool) -> None:
    mine = slot(7)
    stranger = Entry(slot(8).peer_ip, "9.9.9.9")
    Table.entries = [Entry(mine.peer_ip, "9.9.9.9"), Entry(mine.veth_ip, mine.host_ip), stranger]
    Table.vanishing = vanishing
    monkeypatch.setattr(conntrack, "NFCTSocket", Table)
    monkeypatch.setattr(conntrack.NFCTAttrTuple, "from_netlink", classmethod(lambda cls, family, entry: entry))
    assert conntrack.forget(mine) == (0 if vanishing else 2)
    assert Table.entries == [stranger]
