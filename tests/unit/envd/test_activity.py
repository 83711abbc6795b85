"""When a look for open ports is worth it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from wrenn_sandbox.envd.activity import Activity, occupied
from wrenn_sandbox.envd.cgroups import Cgroups


async def _returns(activity: Activity, *, busy: bool) -> bool:
    try:
        async with asyncio.timeout(0):
            await activity.possible(lambda: busy)
    except TimeoutError:
        return False
    return True


def test_at_once_while_a_program_runs() -> None:
    assert asyncio.run(_returns(Activity(), busy=True))


def test_else_when_the_next_one_starts() -> None:
    async def main() -> None:
        activity = Activity()
        activity.begun()  # of one that has ended since
        assert not await _returns(activity, busy=False)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(activity.possible(lambda: False))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not waiting.done()
            activity.begun()

    asyncio.run(main())


@pytest.mark.parametrize(("user", "ptys", "answer"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_groups_tell(tmp_path: Path, user: int, ptys: int, answer: bool) -> None:
    for name, populated in (("user", user), ("ptys", ptys)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    assert occupied(Cgroups(tmp_path)) is answer


def test_what_cannot_be_known_counts_as_yes(tmp_path: Path) -> None:
    assert occupied(None)
    assert occupied(Cgroups(None))
    assert occupied(Cgroups(tmp_path))
