"""Work that must come to an end although the caller who began it may go away.

A half-made sandbox helps nobody: once the row is written, the work goes on to its end or its clean-up in a task that
the control plane owns, and a cancelled request merely stops watching it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.ids import SandboxId

T = TypeVar("T")

#: How long a stopping control plane waits for begun work; what is left is repaired by the next one's reconciler.
SETTLE_S = 10.0


class Settling:
    """The begun work of one control plane, and the sandboxes it is about."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._busy: Counter[SandboxId] = Counter()
        self._closed = False

    async def finish(self, sandbox: SandboxId, work: Coroutine[object, object, T]) -> T:
        """The result of ``work``, which goes on when the caller is cancelled. ``sandbox`` is busy meanwhile."""
        if self._closed:
            work.close()
            raise Unavailable("The control plane is stopping; try again soon.", slug="stopping", retry_after_s=2)
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        result.add_done_callback(_look_at)
        self._group.create_task(self._carry(sandbox, work, result))
        return await asyncio.shield(result)

    def begin(self, sandbox: SandboxId, work: Coroutine[object, object, object]) -> None:
        """Let ``work`` run to its end without waiting for it. Its error is lost: it must log what matters."""
        if self._closed:
            work.close()
            return
        result: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        result.add_done_callback(_look_at)
        self._group.create_task(self._carry(sandbox, work, result))

    def is_busy(self, sandbox: SandboxId) -> bool:
        """Whether work on the sandbox is under way in this process."""
        return self._busy[sandbox] > 0

    def close(self) -> None:
        """Begin nothing new."""
        self._closed = True

    @contextmanager
    def busy(self, sandbox: SandboxId) -> Iterator[None]:
        """Mark the sandbox as being worked on."""
        self._busy[sandbox] += 1
        try:
            yield
        finally:
            self._busy[sandbox] -= 1
            if not self._busy[sandbox]:
                del self._busy[sandbox]

    async def _carry(self, sandbox: SandboxId, work: Coroutine[object, object, T], result: asyncio.Future[T]) -> None:
        with self.busy(sandbox):
            try:
                value = await work
            except asyncio.CancelledError:
                result.cancel()
                raise
            except Exception as error:
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
