from __future__ import annotations

import os
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Exhausted
from wrenn_sandbox.core.placement import Rules
from wrenn_sandbox.core.spec import DEFAULT_SHAPE
from wrenn_sandbox.hostagent.capacity import Capacity, HostFigures, private_mib, read_figures

SMALL = HostFigures(10_000, 1_800, 100_000, 50_000)  # 800 to give: two default sandboxes


def test_two_callers_cannot_both_take_the_last_room() -> None:
    capacity = Capacity(Rules(), lambda: SMALL)
    with capacity.reserved(DEFAULT_SHAPE), capacity.reserved(DEFAULT_SHAPE):
        assert capacity.room().promised_mib == 704
        with pytest.raises(Exhausted):
            capacity.reserved(DEFAULT_SHAPE).__enter__()
        assert capacity.room().sandboxes == 2
    assert (capacity.room().promised_mib, capacity.room().sandboxes) == (0, 0)


def test_together_means_all_or_none() -> None:
    capacity = Capacity(Rules(), lambda: SMALL)
    with pytest.raises(Exhausted):
        capacity.reserved_together([DEFAULT_SHAPE] * 3).__enter__()
    assert capacity.room().sandboxes == 0


def test_reservation_is_given_back_when_the_body_fails() -> None:
    capacity = Capacity(Rules(), lambda: SMALL)
    with pytest.raises(RuntimeError), capacity.reserved(DEFAULT_SHAPE):
        raise RuntimeError
    assert capacity.room().sandboxes == 0


def test_what_a_vmm_uses_is_no_longer_promised() -> None:
    capacity = Capacity(Rules(), lambda: SMALL)
    with capacity.reserved(DEFAULT_SHAPE) as reservation:
        before = capacity.room().promised_mib
        reservation.pid = os.getpid()
        assert capacity.room().promised_mib < before


def test_figures_of_this_host_are_sane(tmp_path: Path) -> None:
    figures = read_figures(tmp_path)
    assert 0 < figures.memory_available_mib <= figures.memory_total_mib
    assert 0 <= figures.disk_free_mib <= figures.disk_total_mib
    assert private_mib(os.getpid()) > 0
    assert private_mib(2**22 + 1) == 0


def test_a_bake_needs_memory_but_is_no_sandbox() -> None:
    capacity = Capacity(Rules(max_sandboxes=1), lambda: SMALL)
    with capacity.reserved(DEFAULT_SHAPE), capacity.reserved_for_bake(DEFAULT_SHAPE):
        assert (capacity.room().sandboxes, capacity.room().promised_mib) == (1, 704)
        with pytest.raises(Exhausted):
            capacity.reserved_for_bake(DEFAULT_SHAPE).__enter__()
    assert capacity.room().promised_mib == 0
