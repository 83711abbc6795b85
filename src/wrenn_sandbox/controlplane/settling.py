"""Work that must come to an end although the caller who began it may go away.

A half-made sandbox helps nobody: once the row is written, the work goes on to its end or its clean-up in a task that
the control plane owns, and a cancelled request merely stops watching it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.ids import EntityId

T = TypeVar("T")

#: How long a stopping control plane waits for begun work; what is left is repaired by the next one's reconciler.
SETTLE_S = 10.0


class Settling:
    """The begun work of one control plane, and the sandboxes (or templates) it is about."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._busy: Counter[EntityId] = Counter()
        self._closed = False

    async def finish(
        self, subject: EntityId, work: Coroutine[object, object, T], *, also: Iterable[EntityId] = ()
    ) -> T:
        """The result of ``work``, which goes on when the caller is cancelled. What it is about is busy meanwhile."""
        if self._closed:
            work.close()
            raise Unavailable("The control plane is stopping; try again soon.", slug="stopping", retry_after_s=2)
        return await asyncio.shield(self._start((subject, *also), work))

    def begin(self, subject: EntityId, work: Coroutine[object, object, object]) -> None:
        """Let ``work`` run to its end without waiting for it. Its error is lost: it must log what matters."""
        if self._closed:
            work.close()
            return
        self._start((subject,), work)

    def is_busy(self, subject: EntityId) -> bool:
        """Whether work on it is under way in this process."""
        return self._busy[subject] > 0

    def close(self) -> None:
        """Begin nothing new."""
        self._closed = True

    def _start(self, subjects: tuple[EntityId, ...], work: Coroutine[object, object, T]) -> asyncio.Future[T]:
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        result.add_done_callback(_look_at)
        self._busy.update(subjects)
        task = self._group.create_task(_carry(work, result))

        def over(_task: asyncio.Task[None]) -> None:
            work.close()  # of use only when the task was cancelled before it began
            result.cancel()
            self._busy.subtract(subjects)
            for subject in subjects:
                if not self._busy[subject]:
                    del self._busy[subject]

        task.add_done_callback(over)
        return result


async def _carry(work: Coroutine[object, object, T], result: asyncio.Future[T]) -> None:
    try:
        value = await work
    except Exception as error:  # the caller's to handle; a group would cancel all other work for it
        result.set_exception(error)
    else:
        result.set_result(value)


def _look_at(result: asyncio.Future[T]) -> None:
    if not result.cancelled():
        result.exception()  # the caller may be gone: nobody else will look


@asynccontextmanager
async def settling() -> AsyncIterator[Settling]:
    """On leaving, begun work is waited for, but not for ever."""
    try:
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
            owner = Settling(group)
            try:
                yield owner
            finally:
                owner.close()
                limit.reschedule(asyncio.get_running_loop().time() + SETTLE_S)
    except TimeoutError:
        return
