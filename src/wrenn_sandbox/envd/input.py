"""Writing to a process: in order, whole, and no faster than it reads."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

#: What a pipe holds by default (pipe(7)); more in one call would only be copied to be refused.
WRITE_BYTES = 64 * 1024


class InputClosedError(Exception):
    """The process reads no more: its input was closed, or it ended."""


class InputPipe:
    """The writing end of a pipe, or our end of a terminal. The descriptor is non-blocking; ``owned`` closes it too."""

    def __init__(self, fd: int, *, owned: bool) -> None:
        self._fd: int | None = fd
        self._owned = owned
        self._turn = asyncio.Lock()  # first come, first served: that keeps the order of requests
        self._writable: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        """Returns when all of ``data`` is in the kernel's hands. InputClosedError when that can no longer happen."""
        async with self._turn:
            rest = memoryview(data)
            while rest:
                fd = self._fd
                if fd is None:
                    raise InputClosedError
                try:
                    rest = rest[os.write(fd, rest[:WRITE_BYTES]) :]
                except BlockingIOError:
                    await self._wait(fd)
                except OSError as error:  # EPIPE: nobody reads; EIO: the terminal is gone
                    raise InputClosedError from error
            if self._fd is None:
                raise InputClosedError

    def close(self) -> None:
        """Close; the process reads the end of its input. Waiting writes fail."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        if self._writable is not None and not self._writable.done():
            asyncio.get_running_loop().remove_writer(fd)
            self._writable.set_exception(InputClosedError())
        if self._owned:
            with suppress(OSError):
                os.close(fd)

    async def _wait(self, fd: int) -> None:
        loop = asyncio.get_running_loop()
        writable = self._writable = loop.create_future()

        def ready() -> None:
            if not writable.done():
                writable.set_result(None)

        loop.add_writer(fd, ready)
        try:
            await writable
        finally:
            self._writable = None
            if self._fd == fd:
                loop.remove_writer(fd)
