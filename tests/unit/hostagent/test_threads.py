from __future__ import annotations

import asyncio
import threading

import pytest

from wrenn_sandbox.hostagent.threads import in_thread


def test_result_and_error_come_back(run) -> None:
    async def work() -> None:
        assert await in_thread(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await in_thread(divmod, 1, 0)

    run(work)


def test_a_cancel_waits_for_the_thread(run) -> None:
    async def work() -> None:
        begun, go_on, done = threading.Event(), threading.Event(), []

        def blocking() -> None:
            begun.set()
            go_on.wait(10)
            done.append(True)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(in_thread(blocking))
            while not begun.is_set():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done() and done == []
            go_on.set()
        assert task.cancelled() and done == [True]

    run(work)
