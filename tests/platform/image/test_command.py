"""Programs run to their end, or to ours: really, with children of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.command import run

pytestmark = pytest.mark.platform

#: Writes the pids of itself and of a child, then waits for ever.
LINGER = 'sleep 1000 & echo $$ $! > "$1.new"; mv "$1.new" "$1"; wait'


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def _until(path: Path) -> list[int]:
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.01)
    return [int(word) for word in path.read_text().split()]


async def _all_gone(pids: list[int]) -> None:
    async with asyncio.timeout(20):
        while not all(map(_gone, pids)):
            await asyncio.sleep(0.01)


def test_output_comes_back_and_input_goes_in() -> None:
    assert asyncio.run(run("cat", timeout_s=20, stdin=b"hello")) == "hello"


def test_the_environment_is_added_to() -> None:
    shown = asyncio.run(run("sh", "-c", "echo $EXTRA; pwd", timeout_s=20, cwd=Path("/"), env={"EXTRA": "1"}))
    assert shown == "1\n/\n"


def test_a_failure_carries_the_end_of_what_was_said() -> None:
    with pytest.raises(Unavailable, match="the cause") as caught:
        asyncio.run(run("sh", "-c", "echo the cause >&2; exit 3", timeout_s=20))
    assert caught.value.slug == "image_build_failed"
    assert "ended with 3" in caught.value.message


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(Unavailable) as caught:
        asyncio.run(run("/nowhere/mke2fs", timeout_s=20))
    assert caught.value.slug == "tool_missing"
    assert "e2fsprogs" in caught.value.message


def test_past_its_time_it_is_killed_with_its_children(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(Unavailable, match="did not end within"):
            await run("sh", "-c", LINGER, "linger", tmp_path / "pids", timeout_s=1)
        await _all_gone(await _until(tmp_path / "pids"))

    asyncio.run(scenario())


def test_cancelled_it_is_killed_with_its_children(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(run("sh", "-c", LINGER, "linger", tmp_path / "pids", timeout_s=100))
            pids = await _until(tmp_path / "pids")
            assert not any(map(_gone, pids))
            task.cancel()
        await _all_gone(pids)

    asyncio.run(scenario())
