from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from wrenn_sandbox.vmm.cancels import in_thread, to_the_end


def _run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def test_result_and_error_come_back() -> None:
    async def work() -> None:
        assert await in_thread(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await in_thread(divmod, 1, 0)

    _run(work)


def test_a_cancel_waits_for_the_thread() -> None:
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

    _run(work)


@pytest.mark.parametrize("cancels", [0, 1, 2])
def test_a_result_outlives_a_cancel_which_comes_at_the_next_await(cancels: int) -> None:
    seen: list[object] = []

    async def main() -> None:
        go_on = asyncio.Event()

        async def command() -> str:
            await go_on.wait()
            return "done"

        async def caller() -> None:
            seen.append(await to_the_end(command()))
            await asyncio.sleep(0)
            seen.append("not cancelled")

        async with asyncio.TaskGroup() as group:
            task = group.create_task(caller())
            for _ in range(cancels):
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.sleep(0)
            assert seen == []
            go_on.set()
        assert task.cancelled() == bool(cancels)

    _run(main)
    assert seen == (["done"] if cancels else ["done", "not cancelled"])


def test_a_time_limit_around_it_stays_one() -> None:
    async def command() -> str:
        for _ in range(5):
            await asyncio.sleep(0)
        return "done"

    async def main() -> None:
        seen = ""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                seen = await to_the_end(command())
                await asyncio.sleep(1)
        assert seen == "done"
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]

    _run(main)


def test_a_time_limit_that_was_held_back_to_the_end_of_its_body_is_forgotten() -> None:
    async def command() -> str:
        for _ in range(5):
            await asyncio.sleep(0)
        return "done"

    async def main() -> None:
        async with asyncio.timeout(0):
            assert await to_the_end(command()) == "done"
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]

    _run(main)


def test_one_cancel_outlives_two_of_them() -> None:
    seen: list[int] = []

    async def main() -> None:
        steps = asyncio.Event()

        async def command(number: int) -> None:
            await steps.wait()
            await asyncio.sleep(0)
            seen.append(number)

        async def caller() -> None:
            await to_the_end(command(1))
            await to_the_end(command(2))
            await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(caller())
            await asyncio.sleep(0)
            task.cancel()
            steps.set()
        assert task.cancelled()

    _run(main)
    assert seen == [1, 2]


def test_a_group_that_fails_still_ends_who_was_held_back() -> None:
    async def command() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def caller() -> None:
        await to_the_end(command())
        await asyncio.Event().wait()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(caller())
                group.create_task(fails())

    _run(main)


def test_an_error_comes_back_at_once() -> None:
    async def command() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await to_the_end(command())

    _run(main)
