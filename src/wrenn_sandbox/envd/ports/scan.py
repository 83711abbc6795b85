"""Who listens on loopback, from /proc/net/tcp and tcp6 (proc(5); kernel: Documentation/networking/proc_net_tcp).

Only these two files are read. Nothing walks /proc/*/fd, and one scan a second must cost little when thousands of
connections are open, so lines are picked by their state before they are taken apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 1.0
#: The first scan of a cycle waits a moment: a restore's first commands matter more.
FIRST_AFTER_S = 0.25

_LISTEN = b" 0A "  # TCP_LISTEN, include/net/tcp_states.h
_LOOPBACK_V4 = b"0100007F"
_LOOPBACK_V6 = b"00000000000000000000000001000000"
_LOOPBACK_MAPPED = b"0000000000000000FFFF00000100007F"


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A socket that listens on 127.0.0.1 or ::1."""

    port: int
    ipv6: bool
    inode: int


Scan = frozenset[Listener]
#: More than a table of a thousand sockets in one read.
_READ_BYTES = 256 * 1024


def parse(table: bytes) -> Scan:
    """The loopback listeners of one table.

    An address is hexadecimal 32-bit words, each in the CPU's byte order: one for IPv4, four for IPv6. Lines with
    fewer than ten fields are skipped. An IPv4 address in an IPv6 socket counts as IPv4.
    """
    found = set()
    for line in table.splitlines():
        if _LISTEN not in line:
            continue
        fields = line.split()
        if len(fields) < 10 or fields[3] != b"0A":
            continue
        address, _, port = fields[1].partition(b":")
        if address in {_LOOPBACK_V4, _LOOPBACK_V6, _LOOPBACK_MAPPED}:
            found.add(Listener(int(port, 16), address == _LOOPBACK_V6, int(fields[9])))
    return frozenset(found)


class Tables:
    """The two tables, kept open: opening them anew costs five times as much as reading them."""

    def __init__(self, net: Path = Path("/proc/net")) -> None:
        self._fds: list[int] = []
        for name in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):  # IPv6 may be off
                self._fds.append(os.open(net / name, os.O_RDONLY | os.O_CLOEXEC))

    def read(self) -> Scan:
        """The loopback listeners now."""
        scan: Scan = frozenset()
        for fd in self._fds:
            scan |= parse(b"".join(_pieces(fd)))
        return scan

    def close(self) -> None:
        """Close both."""
        while self._fds:
            os.close(self._fds.pop())


def _pieces(fd: int) -> Iterator[bytes]:
    offset = 0
    while piece := os.pread(fd, _READ_BYTES, offset):
        offset += len(piece)
        yield piece


async def always() -> None:
    """A look is worth it at any time."""


class Scanner:
    """Scans once a period and hands each result to its subscribers.

    A scan is handed over, not queued: ``signal`` waits until the subscriber takes it. Cancelling the scanner ends that
    wait too, so a subscriber that has left, or never reads, cannot hold it up. When there was nothing to see it waits
    until ``possible`` says that there may be: an idle guest is left asleep.
    """

    def __init__(
        self,
        log: logging.Logger,
        read: Callable[[], Scan] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        possible: Callable[[], Awaitable[None]] = always,
    ) -> None:
        self._log = log
        self._read = read
        self._sleep = sleep
        self._possible = possible
        self._subscribers: list[Subscriber] = []

    def subscribe(self) -> Subscriber:
        """A new subscriber, which gets every scan from now on."""
        subscriber = Subscriber()
        self._subscribers.append(subscriber)
        return subscriber

    async def run(self) -> None:
        """Scan until cancelled."""
        await self._sleep(FIRST_AFTER_S)
        tables = Tables()
        try:
            await self._run(self._read or tables.read)
        finally:
            tables.close()

    async def _run(self, read: Callable[[], Scan]) -> None:
        while True:
            try:
                scan = read()
            except (OSError, ValueError) as error:
                self._log.warning("port scan failed: %s", error)
            else:
                for subscriber in self._subscribers:
                    await subscriber.signal(scan)
                if not scan:
                    await self._possible()
            await self._sleep(PERIOD_S)


class Subscriber:
    """One reader of scans: an unbuffered hand-over."""

    def __init__(self) -> None:
        self._offered: asyncio.Queue[Scan] = asyncio.Queue(1)

    async def signal(self, scan: Scan) -> None:
        """Return when the reader has the scan."""
        await self._offered.put(scan)
        await self._offered.join()

    async def scans(self) -> AsyncIterator[Scan]:
        """The scans as they come, for ever."""
        while True:
            scan = await self._offered.get()
            self._offered.task_done()
            yield scan
