"""What a VMM writes to its console and to stderr, bounded and without a file.

A guest may write to its console for ever and must not fill the host with it. Each log is a memfd of fixed size, sealed
against growth: what comes after the limit is lost, and the writer gets an error. It needs no path in the jail and
nobody to drain it, outlives the agent as long as the VMM does, and another agent finds it again through /proc.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOG_BYTES = 64 * 1024


class Log:
    """A log by its descriptor, which is open for reading and writing."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def text(self) -> str:
        """Everything written so far."""
        return os.pread(self.fd, LOG_BYTES, 0).rstrip(b"\0").decode(errors="replace")


@contextmanager
def new_log(name: str) -> Iterator[Log]:
    """An empty log; the writer gets its descriptor as a stream."""
    fd = os.memfd_create(name, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, LOG_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        yield Log(fd)
    finally:
        os.close(fd)


@contextmanager
def found_log(pid: int, stream: int) -> Iterator[Log]:
    """The log that descriptor ``stream`` of process ``pid`` writes to; an empty one when that cannot be opened."""
    with contextlib.ExitStack() as stack:
        try:
            log = Log(os.open(f"/proc/{pid}/fd/{stream}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            log = stack.enter_context(new_log("lost"))
        else:
            stack.callback(os.close, log.fd)
        yield log
