from __future__ import annotations

import asyncio
from contextlib import contextmanager

import pytest

from wrenn_sandbox.hostagent import threads
from wrenn_sandbox.hostagent.threads import threaded
from wrenn_sandbox.vmm import cancels


def test_there_is_one_way_into_a_thread() -> None:
    assert threads.in_thread is cancels.in_thread


def test_a_context_in_threads_is_left_whatever_comes_between(run) -> None:
    async def work() -> None:
        left: list[str] = []

        @contextmanager
        def context(*, translate: bool = False):
            try:
                yield "entered"
            except ValueError as error:
                if translate:
                    raise KeyError("translated") from error
                raise
            finally:
                left.append("left")

        async with threaded(context()) as value:
            assert value == "entered"
        with pytest.raises(ValueError):
            async with threaded(context()):
                raise ValueError
        with pytest.raises(KeyError):
            async with threaded(context(translate=True)):
                raise ValueError
        async with asyncio.TaskGroup() as group:

            async def hang() -> None:
                async with threaded(context()):
                    await asyncio.Event().wait()

            task = group.create_task(hang())
            await asyncio.sleep(0.01)
            task.cancel()
        assert left == ["left"] * 4

    run(work)
