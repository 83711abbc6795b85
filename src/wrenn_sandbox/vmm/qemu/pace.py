"""Whether a machine runs: as long as the agent does not hold it, it is to go on, whatever stopped it.

::

    runs ──stop──▶ held ──go──▶ runs
     │ ▲
     ▼ └─ every second, unless held
    stopped by QEMU: the guest wrote, and there was no room on the host's disk

QEMU keeps such a write and does it again when the machine goes on (``werror=enospc``, its default), so the guest never
hears of an error: to it, time stood still until there was room.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol

import structlog

from wrenn_sandbox.core.errors import Unavailable, first_cause

log = structlog.get_logger()

_EVENT = "BLOCK_IO_ERROR"
AGAIN_S = 1.0


class Events(Protocol):
    """What was heard of one event."""

    async def get(self) -> object:
        """The next one."""


class Commands(Protocol):
    """The part of a monitor that is needed here."""

    async def execute(self, command: str, **arguments: object) -> object:
        """Run one command; raises Unavailable."""

    def listening_for(self, event: str) -> AbstractContextManager[Events]:
        """Collect events of one name."""


class Pace:
    """Stops and goes of the machine ``name``; ``held`` when an earlier agent may have stopped it.

    ``lacks_room`` while it stands still at a write for which the host's disk has no room.
    """

    def __init__(self, name: str, monitor: Commands, *, held: bool = False) -> None:
        self.lacks_room = False
        self._name = name
        self._monitor = monitor
        self._held = held

    async def stop(self) -> None:
        """Stop the vCPUs and hold them; QEMU writes its disk caches back on the way."""
        self._held = True
        await self._monitor.execute("stop")

    async def go(self) -> None:
        """Let the vCPUs run."""
        self._held = False
        await self._monitor.execute("cont")

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Within the context, a machine that finds no room goes on by itself when there is some."""
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep_going())
                yield
                keeping.cancel()
        except BaseExceptionGroup as failed:
            raise first_cause(failed) from None

    async def _keep_going(self) -> None:
        waits = False
        while True:
            # Anew each time: the library keeps for ever what a listener heard.
            with self._monitor.listening_for(_EVENT) as events:
                waits = await (self._again(events) if waits else self._failed(events))
            if waits:
                await asyncio.sleep(AGAIN_S)
            else:
                self.lacks_room = False

    async def _failed(self, events: Events) -> bool:
        self.lacks_room = _stopped_it(await events.get())
        log.warning("the guest's disk failed; for want of room it waits", machine=self._name)
        return True

    async def _again(self, events: Events) -> bool:
        """Let it go on, unless it is held; whether that was in vain."""
        if self._held:
            return False
        try:
            # Nothing comes between the look above and this command's place in the line: a stop comes after it.
            await self._monitor.execute("cont")
            async with asyncio.timeout(AGAIN_S):
                await events.get()
        except TimeoutError:
            return False
        except Unavailable as error:
            return error.slug != "vmm_gone"
        return True


def _stopped_it(event: object) -> bool:
    """Whether QEMU stopped the machine for it (``action`` of BLOCK_IO_ERROR); other failures the guest is told."""
    data = event.get("data") if isinstance(event, Mapping) else None
    return isinstance(data, Mapping) and data.get("action") == "stop"
