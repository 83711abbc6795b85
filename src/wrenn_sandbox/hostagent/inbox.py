"""What is asked of a sandbox's task, and how it hears of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from wrenn_sandbox.core.errors import Exhausted
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent.builds import Kept

T = TypeVar("T")

#: Operations that wait for their turn.
MAX_WAITING = 16


@dataclass(frozen=True, slots=True)
class Stop:
    """End the sandbox. ``state`` is what it becomes; ``slug`` and ``reason`` say why, for users."""

    state: State
    slug: str = ""
    reason: str = ""


@dataclass(slots=True, eq=False)
class Operation:
    """Something that takes a while and of which there is one at a time. ``answer`` is for whoever waits for it.

    ``holders`` shall keep the build that is made, beside the sandbox itself. Rolling back makes none: ``answer`` has
    the one that the sandbox was put back to.
    """

    action: Action
    build_id: UUID
    holders: tuple[str, ...] = ()
    why: Stop | None = None  # a pause that the sandbox itself decided on
    answer: asyncio.Future[Kept] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def done(self, kept: Kept) -> None:
        """Answer, unless that was done."""
        if not self.answer.done():
            self.answer.set_result(kept)

    def failed(self, error: BaseException) -> None:
        """Answer with an error, unless an answer was given."""
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # looked at: nobody need wait for it

    async def settled(self) -> Kept:
        """Wait for the answer; leaving early changes nothing for the operation."""
        return await asyncio.shield(self.answer)


class Inbox:
    """Messages to one task. A stop is remembered for good, the first one counts; news that nobody took in add up."""

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self._waiting: deque[Operation] = deque()
        self._news = asyncio.Event()

    def end(self, stop: Stop) -> None:
        """Ask for the end."""
        self.stop = self.stop or stop
        self._news.set()

    def ask(self, operation: Operation) -> Operation:
        """Put an operation in line; raises Exhausted (``sandbox_busy``). One for the same build is joined instead."""
        for other in self._waiting:
            if (other.action, other.build_id) == (operation.action, operation.build_id):
                return other
        if len(self._waiting) >= MAX_WAITING:
            message = f"{MAX_WAITING} operations wait for this sandbox already: try again later."
            raise Exhausted(message, slug="sandbox_busy", retry_after_s=5)
        self._waiting.append(operation)
        self._news.set()
        return operation

    def attend(self) -> None:
        """Look again: something else has changed."""
        self._news.set()

    def next(self) -> Operation | None:
        """The operation whose turn it is; whoever takes it must answer it."""
        return self._waiting.popleft() if self._waiting else None

    async def news(self, limit_s: float | None) -> None:
        """Wait until there is something new, at most ``limit_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._news.wait()
        self._news.clear()
