"""Shapes round up to what exists; what cannot be is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.spec import MEMORY_MIB_CHOICES, VCPU_CHOICES, SandboxSpec, Shape, round_up


@settings(max_examples=40)
@given(st.integers(1, 8), st.integers(1, 8192))
def test_the_smallest_shape_that_holds_the_request(vcpus: int, memory: int) -> None:
    shape = round_up(vcpus, memory)
    assert shape.vcpus in VCPU_CHOICES
    assert shape.memory_mib in MEMORY_MIB_CHOICES
    assert shape.vcpus >= vcpus
    assert shape.memory_mib >= memory
    assert not [c for c in VCPU_CHOICES if vcpus <= c < shape.vcpus]
    assert not [m for m in MEMORY_MIB_CHOICES if memory <= m < shape.memory_mib]


@pytest.mark.parametrize(
    ("vcpus", "memory"), [(0, 512), (-1, 512), (10_000, 512), (9, 512), (1, 0), (1, -5), (1, 8193), (1, 10**12)]
)
def test_impossible_sizes_are_refused(vcpus: int, memory: int) -> None:
    with pytest.raises(Invalid) as caught:
        round_up(vcpus, memory)
    assert caught.value.slug == "invalid_size"


def test_a_small_host_offers_less() -> None:
    with pytest.raises(Invalid):
        round_up(4, 512, max_vcpus=2)
    with pytest.raises(Invalid):
        round_up(1, 600, max_memory_mib=512)


def test_no_secret_is_in_a_repr() -> None:
    assert "secret" not in repr(SandboxSpec("base", Shape(1, 512), access_token="secret", envs={"KEY": "secret"}))


def test_shape_forms() -> None:
    assert Shape(2, 1024).slug == "2x1024"
    assert str(Shape(2, 1024)) == "2 vCPU, 1024 MiB"
