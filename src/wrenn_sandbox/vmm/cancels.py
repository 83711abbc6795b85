"""Work that a cancel may not cut in two.

``asyncio.to_thread`` returns at once when it is cancelled and leaves the thread running, so that clean-up would race
with what it undoes; and a command that is given up on after it was sent may or may not have been obeyed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``work``, which must be short; a cancel takes effect when it has ended."""
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, lambda: work(*args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # looked at, so that asyncio does not complain that nobody did
        raise


async def to_the_end(work: Coroutine[object, object, T]) -> T:
    """Await ``work``, which must have a time limit, whatever happens; its result is never lost to a cancel.

    A cancel meanwhile is delivered when the caller next waits for something, unless nobody wants it any more by then:
    ``asyncio.timeout`` takes its cancel back when its body ends.
    """
    loop, caller = asyncio.get_running_loop(), asyncio.current_task()
    assert caller is not None
    inner = loop.create_task(work)
    others: int | None = None  # cancels that were there before those held back here
    while not inner.done():
        try:
            await asyncio.wait([inner])
        except asyncio.CancelledError:
            others = caller.cancelling() - 1 if others is None else min(others, caller.cancelling() - 1)
    if others is not None:
        loop.call_soon(_deliver, caller, others)
    return inner.result()


def _deliver(caller: asyncio.Task[object], others: int) -> None:
    if caller.cancelling() > others:
        caller.uncancel()  # it is the same cancel once more, and they are counted
        caller.cancel()
