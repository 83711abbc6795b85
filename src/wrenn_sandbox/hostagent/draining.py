"""Bring a host to rest: everything that runs is paused durably, or destroyed, side by side.

What cannot be paused runs on: nobody's work is thrown away because a disk is full.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import structlog

from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent.inbox import Operation
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.sandbox import Sandbox
from wrenn_sandbox.hostagent.tasks import side_tasks

log = structlog.get_logger()

DRAIN_LIMIT_S = 60.0
#: More at once only make each of them late.
_AT_ONCE = 4


@dataclass(slots=True)
class Progress:
    """How many sandboxes there were, and what became of them so far."""

    total: int
    done: int = 0
    failed: int = 0


async def drained(registry: Registry, *, kill: bool, limit_s: float) -> AsyncIterator[Progress]:
    """Take no more, then pause or destroy; yields at the beginning and after each. Ends when all is done or failed."""
    registry.refuse()
    living = [sandbox for sandbox in registry.all() if sandbox.is_living]
    progress, places = Progress(len(living)), asyncio.Semaphore(_AT_ONCE)
    results: asyncio.Queue[bool] = asyncio.Queue(max(1, len(living)))

    async def bring_to_rest(sandbox: Sandbox) -> None:
        async with places:
            results.put_nowait(await _rests(registry, sandbox, kill=kill))

    yield progress
    deadline_s = asyncio.get_running_loop().time() + limit_s
    async with side_tasks() as beside:
        tasks = [beside.create_task(bring_to_rest(sandbox)) for sandbox in living]
        while (left := progress.total - progress.done - progress.failed) > 0:
            try:
                async with asyncio.timeout_at(deadline_s):
                    rests = await results.get()
            except TimeoutError:
                log.error("not all sandboxes were brought to rest in time", left=left)
                progress.failed += left
                break
            progress.done += rests
            progress.failed += not rests
            yield progress
        for task in tasks:
            task.cancel()
    yield progress


async def _rests(registry: Registry, sandbox: Sandbox, *, kill: bool) -> bool:
    try:
        if kill or sandbox.state in (State.STARTING, State.RESUMING):
            if sandbox.state is State.RESUMING:  # it stays paused as it was
                sandbox.stop()
                await sandbox.ended()
            else:
                await registry.destroy(sandbox.request.id)
        else:
            await sandbox.ask(Operation(Action.PAUSE, uuid4())).settled()
    except WrennError as error:
        log.error("sandbox not brought to rest", sandbox=str(sandbox.request.id), slug=error.slug, error=error.message)
    return not sandbox.is_living
