"""Scanner and forwarder as one thing that starts, stops and starts again.

::

    stopped ──start──▶ running (cycle n) ──stop──▶ stopped (cycle n dies) ──start──▶ running (cycle n+1) ...

Each cycle is one task with a scanner, a forwarder and a task group of its own, so a stop of cycle n waits for what
cycle n and older ones started and never for cycle n+1. Cycle n+1 touches no port before cycle n is gone: two socats
would fight for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
from collections.abc import Callable
from typing import Self

from wrenn_sandbox.envd.ports.forward import Forwarder
from wrenn_sandbox.envd.ports.scan import Scanner

ScannerFactory = Callable[[], Scanner]
ForwarderFactory = Callable[[], Forwarder]


def release_memory() -> None:
    """Collect garbage twice, so that what finalizers freed goes too, and give free heap back (malloc_trim(3))."""
    gc.collect()
    gc.collect()
    trim = getattr(_LIBC, "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


_LIBC = ctypes.CDLL(None)


class PortSubsystem:
    """Used as a context by the daemon, whose life is the parent of every cycle; leaving it stops for good."""

    def __init__(
        self,
        scanner: ScannerFactory,
        forwarder: ForwarderFactory,
        log: logging.Logger,
        release: Callable[[], None] = release_memory,
    ) -> None:
        self._scanner = scanner
        self._forwarder = forwarder
        self._log = log
        self._release = release
        self._group = asyncio.TaskGroup()
        self._current: asyncio.Task[None] | None = None
        self._alive: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._alive:
            task.cancel()
        self._current = None
        await self._group.__aexit__(None, None, None)

    @property
    def running(self) -> bool:
        """A cycle is under way and nobody has asked it to stop."""
        return self._current is not None

    async def start(self) -> None:
        """Begin a cycle; no-op when one is running."""
        if self._current is not None:
            return
        task = self._group.create_task(self._cycle(), name="port-cycle")
        self._current = task
        self._alive.add(task)
        task.add_done_callback(self._done)

    async def stop(self) -> None:
        """End the cycle, if one is running, and return when nothing of it or an older one is left."""
        stopped, self._current = self._current, None
        if stopped is not None:
            stopped.cancel()
        dying = set(self._alive)  # nothing here is newer than what was just stopped
        if dying:
            await asyncio.wait(dying)
        if stopped is not None:
            self._release()

    async def restart(self) -> None:
        """``stop`` and ``start``."""
        await self.stop()
        await self.start()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._alive.discard(task)
        if self._current is task:  # it failed; the next start begins anew
            self._current = None

    async def _cycle(self) -> None:
        async with self._one_at_a_time:
            scanner, forwarder = self._scanner(), self._forwarder()
            subscriber = scanner.subscribe()
            try:
                async with asyncio.TaskGroup() as workers:
                    workers.create_task(scanner.run(), name="port-scanner")
                    workers.create_task(forwarder.run(subscriber), name="port-forwarder")
            except* Exception as failures:
                self._log.error("port subsystem failed", exc_info=failures)


class NoPorts:
    """Stands in where nothing is forwarded: outside a guest."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def start(self) -> None:
        """Does nothing."""

    async def stop(self) -> None:
        """Gives free memory back, as a real stop does."""
        release_memory()
