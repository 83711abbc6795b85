from __future__ import annotations

import asyncio
import os

import pytest

from wrenn_sandbox.core.errors import NotFound
from wrenn_sandbox.vmm.process import Identity, identify, lives, uncancelled


def test_a_process_is_its_number_and_its_start() -> None:
    me = identify(os.getpid())
    assert me == identify(os.getpid())
    assert me.pid == os.getpid()
    assert me.start_ticks > 0
    assert me != Identity(me.pid, me.start_ticks + 1)


def test_it_lives_until_it_is_another() -> None:
    me = identify(os.getpid())
    assert lives(me)
    assert not lives(Identity(me.pid, me.start_ticks + 1))
    assert not lives(Identity(2**22 + 1, 1))


def test_nobody_has_that_number() -> None:
    with pytest.raises(NotFound) as caught:
        identify(2**22 + 1)  # above PID_MAX_LIMIT (proc_sys_kernel(5))
    assert caught.value.slug == "vmm_gone"


def test_a_cancel_waits_for_the_event_and_then_counts() -> None:
    async def main() -> None:
        event, order = asyncio.Event(), []

        async def waiting() -> None:
            try:
                await uncancelled(event, 5)
            except asyncio.CancelledError:
                order.append("cancelled")
                raise

        async with asyncio.TaskGroup() as group:
            task = group.create_task(waiting())
            for _ in range(3):  # however often
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.sleep(0)
            order.append("set")
            event.set()
        assert order == ["set", "cancelled"]
        assert task.cancelled()

    asyncio.run(main())


@pytest.mark.parametrize("is_set", [True, False])
def test_the_limit_bounds_it(is_set: bool) -> None:
    async def main() -> bool:
        event = asyncio.Event()
        if is_set:
            event.set()
        return await uncancelled(event, 0.001)

    assert asyncio.run(main()) is is_set
