"""Roll back: the parts of an earlier moment beside the ones that run, so that a failure leaves those untouched.

::

    [memory ▸ build ▸ directory ▸ link ▸ machine ▸ guest] beside the old ones ▸ the caller holds, swaps, lets the old go
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.parts import Parts
from wrenn_sandbox.hostagent.phases import Stopwatch
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.tasks import side_tasks
from wrenn_sandbox.vmm.driver import Machine

Make = Callable[[Request, Host, AsyncExitStack, Stopwatch, Callable[[Machine], None]], Awaitable[Parts]]


async def rollback(request: Request, host: Host, stack: AsyncExitStack, watch: Stopwatch, make: Make) -> Parts:
    """The new parts, on ``stack``; nothing else changed. Raises WrennErrors, also when the new machine dies."""
    if request.build_id is None:
        raise ValueError("a roll back needs a build")
    watchers: list[asyncio.Task[None]] = []
    async with side_tasks() as beside:
        parts = await make(request, host, stack, watch, lambda m: watchers.append(beside.create_task(_fail_at_end(m))))
        for watcher in watchers:
            watcher.cancel()
    return parts


async def _fail_at_end(machine: Machine) -> None:
    ended = await machine.wait()
    raise Unavailable(f"The virtual machine of the earlier moment ended: {ended.reason}", slug="vmm_died")
