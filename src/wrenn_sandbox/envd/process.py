"""One process: its descriptors, its output, its end.

    running ──exit seen by pidfd──▶ draining ──pipes at their end, or 1 s and all it wrote──▶ ended
                                                                                             │
                                                   pipes that something else still holds: read and discarded

Everything is a callback of the event loop: no task, no thread, no child watcher. Output that a background child
writes after the end belongs to no stream; it is read all the same, since closing the pipe would kill the child with
SIGPIPE at its next line.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import signal
import termios
from collections.abc import Callable
from dataclasses import dataclass

from wrenn_sandbox.envd import pty, sessions
from wrenn_sandbox.envd.ending import UNKNOWN_ENDING, Ending, ending_of
from wrenn_sandbox.envd.input import InputPipe
from wrenn_sandbox.envd.output import Chunk, Cursor, OutputLog, Source

PIPE_CHUNK_BYTES = 32 * 1024
PTY_CHUNK_BYTES = 16 * 1024
#: How long after the exit somebody else may keep a pipe open before the output counts as complete.
LINGER_S = 1.0
#: How long a stream may hold a process up without reading anything.
STALL_S = 30.0


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Our ends. A pipe each, or the terminal in ``terminal`` and, kept open until the exit, its other end."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    terminal: int | None = None
    terminal_slave: int | None = None


class _Reader:
    """One source of output. ``owed`` is what the process had written into it when it exited."""

    __slots__ = ("active", "chunk_bytes", "fd", "owed", "source")

    def __init__(self, fd: int, source: Source, chunk_bytes: int) -> None:
        self.fd: int | None = fd
        self.source = source
        self.chunk_bytes = chunk_bytes
        self.active = False
        self.owed = 0


class Process:
    """A started process, until nothing of it is left.

    Owns ``descriptors`` once it is made; making it raises OSError when the kernel has no descriptor for it.
    """

    def __init__(self, pid: int, descriptors: Descriptors, on_end: Callable[[Process], None]) -> None:
        self._pidfd = os.pidfd_open(pid)
        self.pid = pid
        self.log = OutputLog()
        self.ending: Ending | None = None
        self.expired = False
        self._exit: Ending | None = None
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._lingered = False
        self._terminal = descriptors.terminal
        self._slave = descriptors.terminal_slave
        self._readers = [
            _Reader(fd, source, PTY_CHUNK_BYTES if source is Source.PTY else PIPE_CHUNK_BYTES)
            for fd, source in (
                (descriptors.stdout, Source.STDOUT),
                (descriptors.stderr, Source.STDERR),
                (descriptors.terminal, Source.PTY),
            )
            if fd is not None
        ]
        self.stdin: InputPipe | None = None
        if descriptors.stdin is not None:
            self.stdin = InputPipe(descriptors.stdin, owned=True)
        elif descriptors.terminal is not None:
            self.stdin = InputPipe(descriptors.terminal, owned=False)
        self._loop.add_reader(self._pidfd, self._exited)
        self._read_on()

    # -- what requests do with it ---------------------------------------------------------------------------------

    @property
    def has_terminal(self) -> bool:
        """It was started on a terminal of its own."""
        return self._terminal is not None

    def expire_at(self, deadline: float) -> None:
        """Kill it when the loop's clock reaches ``deadline``."""
        self._timers["deadline"] = self._loop.call_at(deadline, self.expire)

    def expire(self) -> None:
        """Its time is up."""
        if self._exit is None and not self.expired:
            self.expired = True
            self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal to its group, and to the foreground of its terminal; SIGKILL reaches its whole session."""
        exited = self._exit is not None
        if self._terminal is not None and not exited:
            foreground = pty.foreground_group(self._terminal)
            if foreground is not None and foreground != self.pid:
                sessions.signal_group(foreground, number, leader_waited=False)
        if number == signal.SIGKILL and not exited:
            sessions.kill_session(self.pid)
        else:
            sessions.signal_group(self.pid, number, leader_waited=exited)

    def resize(self, size: pty.Size) -> None:
        """Change the size of its terminal, which it must have."""
        assert self._terminal is not None
        pty.resize(self._terminal, size)

    def attach(self, notify: Callable[[], None], *, replay: bool = False) -> Cursor:
        """A place in its output; see OutputLog."""
        return self.log.attach(self._loop.time(), notify, replay=replay)

    def detach(self, cursor: Cursor) -> None:
        """Give the place up, which may let the process go on."""
        self.log.detach(cursor)
        self._resume()

    def next(self, cursor: Cursor) -> Chunk | None:
        """The next output for that place, which may let the process go on."""
        chunk = self.log.next(cursor, self._loop.time())
        self._resume()
        return chunk

    # -- what the event loop does with it -------------------------------------------------------------------------

    def _read_on(self) -> None:
        for reader in self._readers:
            if reader.fd is not None and not reader.active:
                reader.active = True
                self._loop.add_reader(reader.fd, self._readable, reader)

    def _pause(self) -> None:
        for reader in self._readers:
            if reader.fd is not None and reader.active:
                reader.active = False
                self._loop.remove_reader(reader.fd)
        self._watch_stall()

    def _resume(self) -> None:
        if any(r.fd is not None and not r.active for r in self._readers) and self.log.roomy:
            self._cancel("stall")
            self._read_on()

    def _watch_stall(self) -> None:
        oldest = self.log.oldest_move()
        if oldest is not None:
            self._timers["stall"] = self._loop.call_at(oldest + STALL_S, self._stalled)

    def _stalled(self) -> None:
        self.log.cut_stalled(self._loop.time() - STALL_S)
        self._resume()
        if not self.log.roomy:
            self._watch_stall()

    def _readable(self, reader: _Reader) -> bool:
        """Read once; False when there was nothing to read now."""
        assert reader.fd is not None
        try:
            data = os.read(reader.fd, reader.chunk_bytes)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the other side of a terminal is closed
            data = b""
        if not data:
            self._close_reader(reader)
        elif self.ending is None:
            self.log.append(Chunk(reader.source, data))
            reader.owed -= len(data)
            if self.log.full:
                self._pause()
        if self._exit is not None:
            self._finish_if_drained()
        return True

    def _exited(self) -> None:
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            ending = UNKNOWN_ENDING
        else:
            if result is None:
                return
            ending = ending_of(result.si_code, result.si_status)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._cancel("deadline")
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None
        for reader in self._readers:
            reader.owed = _pending(reader.fd)
        self._exit = ending
        for reader in self._readers:
            self._drain(reader)
        self._finish_if_drained()
        if self.ending is None:
            self._timers["linger"] = self._loop.call_later(LINGER_S, self.stop_lingering)

    def _drain(self, reader: _Reader) -> None:
        """Read what the process left, and once more, for the end of it; all of it at once saves turns of the loop."""
        more = True
        while more and reader.fd is not None and reader.active and self.ending is None:
            more = reader.owed > 0
            if not self._readable(reader):
                break

    def stop_lingering(self) -> None:
        """Wait no longer for those that hold its pipes open."""
        self._lingered = True
        self._finish_if_drained()

    def _finish_if_drained(self) -> None:
        drained = all(r.fd is None or (self._lingered and r.owed <= 0) for r in self._readers)
        if self._exit is None or self.ending is not None or not drained:
            return
        self.ending = self._exit
        self._cancel("linger")
        self._cancel("stall")
        if self.stdin is not None:
            self.stdin.close()
        for reader in self._readers:
            if reader.source is Source.PTY:
                self._close_reader(reader)  # whoever is left on the terminal is told by SIGHUP
        self._read_on()
        self.log.notify()
        self._on_end(self)

    # -- the end of it --------------------------------------------------------------------------------------------

    @property
    def leaves_something(self) -> bool:
        """Ended, but somebody else of its group lives, or holds a pipe of it."""
        alive = sessions.signal_group(self.pid, 0, leader_waited=True)
        return alive or any(reader.fd is not None for reader in self._readers)

    def abandon(self) -> None:
        """Kill what is left and close every descriptor, so that nothing of it remains but perhaps a zombie."""
        if self._exit is None:
            self.signal(signal.SIGKILL)
        else:
            sessions.signal_group(self.pid, signal.SIGKILL, leader_waited=True)
        for name in list(self._timers):
            self._cancel(name)
        if self.stdin is not None:
            self.stdin.close()
        for reader in self._readers:
            self._close_reader(reader)
        if self._exit is not None:
            self._lingered = True
            self._finish_if_drained()

    def _close_reader(self, reader: _Reader) -> None:
        fd, reader.fd = reader.fd, None
        if fd is None:
            return
        if reader.active:
            self._loop.remove_reader(fd)
        if reader.source is Source.PTY:
            if self.stdin is not None:
                self.stdin.close()
            self._terminal = None
        os.close(fd)

    def _cancel(self, timer: str) -> None:
        handle = self._timers.pop(timer, None)
        if handle is not None:
            handle.cancel()


def _pending(fd: int | None) -> int:
    """Bytes waiting in a pipe or terminal (FIONREAD, ioctl(2))."""
    if fd is None:
        return 0
    count = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]
