"""One socat for each port that is listened on at loopback only, so that the host can reach it.

::

    new port ──start──▶ forwarding ──listener gone──▶ killed, reaped, forgotten
                          │   ▲
               socat ended│   │ back-off over and still listened on
                          ▼   │
                         failed

A server that listens on both 127.0.0.1 and ::1 gets one socat, over IPv4. All of a socat's connection handlers are in
its process group and die with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Protocol

from wrenn_sandbox.envd.ports.child import Child
from wrenn_sandbox.envd.ports.scan import Scan, Subscriber

#: Scans to wait after the n-th failure of a port's socat in a row.
BACKOFF_SCANS = (1, 2, 4, 8, 15, 30)
#: Seconds a killed process may take to be reaped.
REAP_TIMEOUT_S = 5.0


class Process(Protocol):
    """What the forwarder needs of a child process."""

    @property
    def running(self) -> bool:
        """Not reaped yet."""

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""

    def kill(self) -> None:
        """SIGKILL the group."""

    async def wait(self) -> int:
        """Return when it is reaped."""


@dataclass(slots=True)
class Entry:
    """One forwarded port. ``failures`` counts the ends of its socat in a row, ``rest`` the scans until the next try."""

    ipv6: bool
    process: Process | None = None
    failures: int = 0
    rest: int = 0


def wanted(scan: Scan, excluded: Container[int]) -> dict[int, bool]:
    """The ports to forward, and whether their server listens on IPv6 only."""
    ports: dict[int, bool] = {}
    for listener in scan:
        if listener.port not in excluded:
            ports[listener.port] = ports.get(listener.port, True) and listener.ipv6
    return ports


def socat_argv(socat: str, address: str, port: int, ipv6: bool) -> list[str]:
    """The command that forwards ``address:port`` to the same port of loopback."""
    target = f"TCP6:[::1]:{port}" if ipv6 else f"TCP4:127.0.0.1:{port}"
    return [socat, f"TCP4-LISTEN:{port},bind={address},reuseaddr,fork", target]


class Forwarder:
    """Keeps the socats of one cycle in step with the scans."""

    def __init__(
        self,
        socat: str,
        address: str,
        excluded: Container[int],
        log: logging.Logger,
        start: Callable[[list[str]], Process] = Child.start,
    ) -> None:
        self._socat = socat
        self._address = address
        self._excluded = excluded
        self._log = log
        self._start = start
        self.entries: dict[int, Entry] = {}

    async def run(self, subscriber: Subscriber) -> None:
        """Follow the scans until cancelled; then no socat of this cycle is alive."""
        try:
            async for scan in subscriber.scans():
                await self.follow(scan)
        finally:
            await self.stop()

    async def follow(self, scan: Scan) -> None:
        """Start, restart and stop socats so that they fit one scan."""
        ports = wanted(scan, self._excluded)
        await self._end([port for port, entry in self.entries.items() if ports.get(port) != entry.ipv6])
        for port, ipv6 in ports.items():
            entry = self.entries.setdefault(port, Entry(ipv6))
            if entry.process is not None and entry.process.running:
                entry.failures = 0
                continue
            if entry.process is not None:
                await self._note_end(port, entry)
            if entry.rest > 0:
                entry.rest -= 1
                continue
            self._try(port, entry)

    async def stop(self) -> None:
        """Kill every socat with its group and see each one reaped."""
        await self._end(list(self.entries))

    async def _end(self, ports: list[int]) -> None:
        processes = [process for port in ports if (process := self.entries[port].process) is not None]
        for process in processes:
            process.kill()
        for process in processes:
            async with asyncio.timeout(REAP_TIMEOUT_S):
                await process.wait()
        for port in ports:  # only now: a cancel in between leaves them to ``stop``
            del self.entries[port]

    async def _note_end(self, port: int, entry: Entry) -> None:
        process, entry.process = entry.process, None
        if process is None:
            return
        code = await process.wait()
        entry.rest = BACKOFF_SCANS[min(entry.failures, len(BACKOFF_SCANS) - 1)] - 1
        entry.failures += 1
        self._log.warning("socat for port %d ended with %d; tried again in %d s", port, code, entry.rest + 1)

    def _try(self, port: int, entry: Entry) -> None:
        try:
            entry.process = self._start(socat_argv(self._socat, self._address, port, entry.ipv6))
        except OSError as error:
            entry.rest = BACKOFF_SCANS[min(entry.failures, len(BACKOFF_SCANS) - 1)]
            entry.failures += 1
            self._log.warning("socat for port %d does not start: %s", port, error)
