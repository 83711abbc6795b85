from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrenn_sandbox.core.errors import Exhausted
from wrenn_sandbox.core.placement import Room, Rules, outstanding_mib, require_room, reservation_mib
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, MEMORY_MIB_CHOICES, Shape

ROOM = Room(
    memory_total_mib=10_000,
    memory_available_mib=8_000,
    promised_mib=0,
    disk_total_mib=100_000,
    disk_free_mib=50_000,
    sandboxes=0,
)
RULES = Rules()


def test_a_sandbox_reserves_half_its_memory_and_what_its_vmm_costs() -> None:
    assert reservation_mib(Shape(1, 512), RULES) == 352
    assert reservation_mib(Shape(1, 512), replace(RULES, memory_factor=1.0)) == 608


def test_a_tenth_of_memory_stays_the_hosts() -> None:
    # 8000 available less the reserve of 1000 leaves 7000: 19 sandboxes of 352 fit, 20 do not
    assert require_room(ROOM, [DEFAULT_SHAPE] * 19, RULES) == 19 * 352
    with pytest.raises(Exhausted) as full:
        require_room(ROOM, [DEFAULT_SHAPE] * 20, RULES)
    assert full.value.slug == "host_full" and full.value.retry_after_s > 0


def test_promises_count_before_they_are_used() -> None:
    require_room(replace(ROOM, promised_mib=6_648), [DEFAULT_SHAPE], RULES)
    with pytest.raises(Exhausted):
        require_room(replace(ROOM, promised_mib=6_649), [DEFAULT_SHAPE], RULES)


@pytest.mark.parametrize(
    ("total", "free", "fits"),
    [(20_000, 5_120, True), (20_000, 5_119, False), (100_000, 10_000, True), (100_000, 9_999, False)],
)
def test_disk_keeps_five_gib_and_a_tenth(total: int, free: int, fits: bool) -> None:
    room = replace(ROOM, disk_total_mib=total, disk_free_mib=free)
    if fits:
        require_room(room, [DEFAULT_SHAPE], RULES)
        return
    with pytest.raises(Exhausted) as full:
        require_room(room, [DEFAULT_SHAPE], RULES)
    assert full.value.slug == "host_disk_full"


def test_number_of_sandboxes_is_bounded() -> None:
    rules = replace(RULES, max_sandboxes=3)
    require_room(replace(ROOM, sandboxes=1), [DEFAULT_SHAPE] * 2, rules)
    with pytest.raises(Exhausted):
        require_room(replace(ROOM, sandboxes=2), [DEFAULT_SHAPE] * 2, rules)


@given(st.integers(0, 100_000), st.integers(0, 100_000), st.lists(st.sampled_from(MEMORY_MIB_CHOICES), max_size=8))
def test_what_is_admitted_never_eats_the_reserve(available: int, promised: int, sizes: list[int]) -> None:
    room = replace(ROOM, memory_total_mib=100_000, memory_available_mib=available, promised_mib=promised)
    shapes = [Shape(1, size) for size in sizes]
    try:
        reserved = require_room(room, shapes, RULES)
    except Exhausted:
        return
    assert not shapes or available - promised - reserved >= 10_000


def test_a_reservation_in_use_is_no_promise() -> None:
    assert (outstanding_mib(352, 0), outstanding_mib(352, 100), outstanding_mib(352, 400)) == (352, 252, 0)
