from __future__ import annotations

import asyncio

import pytest

from wrenn_sandbox.controlplane.race import first_of


async def for_ever(cancelled: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        cancelled.append("x")
        raise


async def at_once() -> None:
    pass


async def failing() -> None:
    raise ValueError("mine")


def test_the_first_to_end_ends_all() -> None:
    cancelled: list[str] = []
    asyncio.run(first_of(for_ever(cancelled), at_once(), for_ever(cancelled)))
    assert cancelled == ["x", "x"]


def test_an_error_comes_out_as_itself() -> None:
    cancelled: list[str] = []
    with pytest.raises(ValueError, match="mine"):
        asyncio.run(first_of(for_ever(cancelled), failing()))
    assert cancelled == ["x"]


def test_a_cancel_from_outside_cancels_all() -> None:
    cancelled: list[str] = []

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await first_of(for_ever(cancelled), for_ever(cancelled))

    asyncio.run(main())
    assert cancelled in (["x", "x"], [])  # none when they had not begun yet
