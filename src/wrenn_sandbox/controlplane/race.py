"""Several things at once, of which the first to end ends all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def first_of(*works: Coroutine[object, object, None]) -> None:
    """Run all until one ends; the others are cancelled and waited for. Raises the error of the one that ended."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_outcome(work)) for work in works]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
    for task in ended:
        if not task.cancelled() and (error := task.result()) is not None:
            raise error


async def _outcome(work: Coroutine[object, object, None]) -> Exception | None:
    try:
        await work
    except Exception as error:  # carried by hand: the group would wrap it and cancel its caller
        return error
    return None
