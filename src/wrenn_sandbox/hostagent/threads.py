"""Blocking work in a thread that its caller does not outlive; ``vmm.cancels`` says why and how."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

from wrenn_sandbox.vmm.cancels import in_thread, to_the_end

__all__ = ["in_thread", "threaded", "to_the_end"]

T = TypeVar("T")


@asynccontextmanager
async def threaded(context: AbstractContextManager[T]) -> AsyncIterator[T]:
    """``context``, entered and left in a thread; what was entered is left, whatever comes between."""
    value = await to_the_end(in_thread(context.__enter__))
    try:
        yield value
    except Exception as error:
        if not await to_the_end(in_thread(context.__exit__, type(error), error, error.__traceback__)):
            raise
    except BaseException:
        await to_the_end(in_thread(context.__exit__, None, None, None))
        raise
    else:
        await to_the_end(in_thread(context.__exit__, None, None, None))
