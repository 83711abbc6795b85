"""Slot arithmetic: vectors, and that no two slots share anything."""

from __future__ import annotations

import pytest

from wrenn_sandbox.core.slots import FIRST_SLOT, LAST_SLOT, slot


def test_vectors() -> None:
    assert (slot(1).host_ip, slot(1).veth_ip, slot(1).peer_ip) == ("10.11.0.1", "10.12.0.2", "10.12.0.3")
    last = slot(32767)
    assert (last.host_ip, last.veth_ip, last.peer_ip) == ("10.11.127.255", "10.12.255.254", "10.12.255.255")


def test_nothing_is_shared() -> None:
    slots = [slot(i) for i in range(FIRST_SLOT, 2000)]
    for field in ("netns", "veth", "host_ip", "uid"):
        assert len({getattr(s, field) for s in slots}) == len(slots)
    assert len({a for s in slots for a in (s.veth_ip, s.peer_ip)}) == 2 * len(slots)


def test_names_fit_the_kernel() -> None:
    assert len(slot(LAST_SLOT).veth) <= 15
    names = {slot(i, tag="wrenn-test-of-many").veth for i in range(LAST_SLOT - 99, LAST_SLOT + 1)}
    assert len(names) == 100
    assert max(map(len, names)) <= 15


@pytest.mark.parametrize("index", [0, -1, 32768])
def test_outside_the_range(index: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        slot(index)


def test_group_is_private_too() -> None:
    assert slot(5).gid == slot(5).uid != slot(6).uid
