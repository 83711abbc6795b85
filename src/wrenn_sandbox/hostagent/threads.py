"""Blocking work in a thread that its caller does not outlive.

``asyncio.to_thread`` returns at once when it is cancelled and leaves the thread running, so that clean-up would race
with what it undoes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
