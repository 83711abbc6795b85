"""Round trips, the published vectors, and what is refused."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.ids import PLATFORM_TEAM_ID, SandboxId, TeamId, UserId, from_base36, to_base36

VECTORS = {
    UUID(int=0): "0" * 25,
    UUID(int=1): "0" * 24 + "1",
    UUID(int=(1 << 128) - 1): "f5lxx1zz5pnorynqglhzmsp33",
    UUID("123e4567-e89b-42d3-a456-426614174000"): "12vqjrnxk9xeov6o4f05pan0g",
}


@pytest.mark.parametrize(("value", "text"), VECTORS.items())
def test_base36_vectors(value: UUID, text: str) -> None:
    assert to_base36(value) == text
    assert from_base36(text) == value


@settings(max_examples=40)
@given(st.uuids())
def test_every_id_survives_both_wire_forms(value: UUID) -> None:
    sandbox = SandboxId(value)
    assert SandboxId.parse(str(sandbox)) == sandbox
    assert SandboxId.parse(f"cl-{sandbox.base36}") == sandbox
    assert SandboxId.parse(f"sb-{sandbox.base36}") == sandbox


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sb-",
        "sb",
        "usr-123e4567-e89b-42d3-a456-426614174000",
        "123e4567-e89b-42d3-a456-426614174000",
        "sb-123e4567e89b42d3a456426614174000",
        "sb-{123e4567-e89b-42d3-a456-426614174000}",
        "sb-123E4567-E89B-42D3-A456-426614174000",
        "sb-123e4567-e89b-42d3-a456-42661417400",
        "sb-f5lxx1zz5pnorynqglhzmsp34",  # one above 128 bits
        "sb-../../etc/passwd",
        "sb-123e4567-e89b-42d3-a456-426614174000\n",
        "sb-\x00",
    ],
)
def test_malformed_ids_are_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        SandboxId.parse(text)
    assert caught.value.slug == "invalid_id"


def test_kinds_do_not_mix() -> None:
    value = UUID(int=7)
    assert TeamId(value) != UserId(value)
    with pytest.raises(Invalid):
        TeamId.parse(str(UserId(value)))


def test_the_platform_team_is_all_zeros() -> None:
    assert str(PLATFORM_TEAM_ID) == "team-00000000-0000-0000-0000-000000000000"
