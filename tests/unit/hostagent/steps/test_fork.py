from __future__ import annotations

import asyncio

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.hostagent.steps.fork import born


class Child:
    def __init__(self, error: Exception | None = None, *, hangs: bool = False) -> None:
        self.error, self.hangs, self.state = error, hangs, "starting"

    async def started(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        self.state = "running"

    def stop(self) -> None:
        self.state = "stopping"

    async def ended(self) -> None:
        self.state = "gone"


def test_all_are_born(run) -> None:
    async def work() -> None:
        children = [Child(), Child()]
        await born(children)
        assert [child.state for child in children] == ["running", "running"]

    run(work)


def test_one_that_cannot_start_takes_all_along(run) -> None:
    async def work() -> None:
        children = [Child(), Child(Unavailable("no")), Child()]
        with pytest.raises(Unavailable):
            await born(children)
        assert [child.state for child in children] == ["gone"] * 3

    run(work)


def test_a_cancel_leaves_none(run) -> None:
    async def work() -> None:
        children = [Child(), Child(hangs=True)]
        async with asyncio.TaskGroup() as group:
            task = group.create_task(born(children))
            await asyncio.sleep(0)
            task.cancel()
        assert task.cancelled() and [child.state for child in children] == ["gone"] * 2

    run(work)
