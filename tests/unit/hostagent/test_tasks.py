from __future__ import annotations

import asyncio

import pytest

from wrenn_sandbox.hostagent.tasks import side_tasks


def test_errors_come_out_as_they_are(run) -> None:
    async def failing() -> None:
        raise KeyError("side")

    async def work() -> None:
        with pytest.raises(LookupError):
            async with side_tasks():
                raise LookupError
        with pytest.raises(KeyError):
            async with side_tasks() as group:
                group.create_task(failing())
                await asyncio.Event().wait()

    run(work)


def test_a_generator_inside_can_be_closed_early(run) -> None:
    async def work() -> None:
        ended = []

        async def hanging() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("side")

        async def numbers():
            async with side_tasks() as group:
                group.create_task(hanging())
                await asyncio.sleep(0)
                yield 1

        generator = numbers()
        assert await anext(generator) == 1
        await generator.aclose()
        assert ended == ["side"]

    run(work)


def test_a_cancel_stays_a_cancel(run) -> None:
    async def work() -> None:
        async def body() -> None:
            async with side_tasks():
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(body())
            await asyncio.sleep(0)
            task.cancel()
        assert task.cancelled()

    run(work)
