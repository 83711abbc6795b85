"""VMM processes: started, watched, killed and reaped, the same way by every driver.

A process is held by its pidfd, so that it can be watched whoever its parent is and a number used again is never
mistaken for it. An agent that calls ``become_subreaper`` is made parent of the VMMs whose launcher has gone, and so can
reap them and learn their exit code; a VMM of an earlier agent is somebody else's child, and its code stays unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import select
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from wrenn_sandbox.core.errors import NotFound, Unavailable, first_cause

#: Exit code of a process that somebody else reaped: outside of what waitid(2) can give.
UNKNOWN_CODE = 256
KILL_LIMIT_S = 10.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_FIRST_FREE_FD = 64  # above every number a child is given
#: Python ignores these two; an ignored signal stays ignored across exec.
_RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
_STATE_FIELD, _START_TIME_FIELD = 0, 19  # state and starttime, counted from field 3 of proc_pid_stat(5)
_DEAD = "ZX"


@dataclass(frozen=True, slots=True)
class Identity:
    """Names one process for good: its number alone may be used again. ``start_ticks``: clock ticks since boot."""

    pid: int
    start_ticks: int


def identify(pid: int) -> Identity:
    """The identity of a live or unreaped process; raises NotFound (``vmm_gone``)."""
    return Identity(pid, int(_stat(pid)[_START_TIME_FIELD]))


def lives(identity: Identity) -> bool:
    """Whether this very process runs: neither another of its number nor one that is dead and not reaped yet."""
    try:
        fields = _stat(identity.pid)
    except NotFound:
        return False
    return fields[_STATE_FIELD] not in _DEAD and int(fields[_START_TIME_FIELD]) == identity.start_ticks


def _stat(pid: int) -> list[str]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(f"There is no process {pid}.", slug="vmm_gone") from error
    return stat.rpartition(")")[2].split()


def become_subreaper() -> None:
    """Make this process the parent of its orphaned descendants (PR_SET_CHILD_SUBREAPER(2const))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def start(argv: Sequence[str], *, fds: Mapping[int, int], env: Mapping[str, str]) -> int:
    """Start ``argv`` in a session of its own and return its pid, which the caller must hand to ``watch`` at once.

    ``fds`` maps numbers in the child to descriptors here; the caller keeps these. 0, 1 and 2 are /dev/null unless
    given. Nothing else is inherited, as long as every other descriptor here is close-on-exec. Blocks until the exec.
    """
    copies: dict[int, int] = {}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for number, fd in ({0: null, 1: null, 2: null} | dict(fds)).items():
            # Above every target, so that no dup2 in the child closes the source of a later one.
            copies[number] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
        actions = [(os.POSIX_SPAWN_DUP2, copy, number) for number, copy in copies.items()]
        return os.posix_spawn(
            argv[0], list(argv), dict(env), file_actions=actions, setsid=True, setsigmask=(), setsigdef=_RESET_SIGNALS
        )
    finally:
        os.close(null)
        for copy in copies.values():
            os.close(copy)


class Process:
    """A process held by its pidfd. Made by ``watch``. One that is ``spared`` lives on when it is held no more."""

    def __init__(self, identity: Identity, pidfd: int, *, spared: bool = False) -> None:
        self.identity = identity
        self.spared = spared
        self._pidfd = pidfd
        self._ended = asyncio.Event()
        self._code: int | None = None
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)
        if _is_readable(pidfd):
            self._on_end()

    @property
    def pid(self) -> int:
        """Its number on this host."""
        return self.identity.pid

    @property
    def code(self) -> int | None:
        """Exit code, negative signal number, or UNKNOWN_CODE; None while it runs."""
        return self._code

    async def wait(self) -> int:
        """Return its code when it has ended. Any number of callers may wait."""
        await self._ended.wait()
        assert self._code is not None
        return self._code

    @asynccontextmanager
    async def required(self) -> AsyncIterator[None]:
        """The body is cut off when the process ends; raises Unavailable (``vmm_gone``) then."""
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self._fail_at_end())
                yield
                watcher.cancel()
        except BaseExceptionGroup as failed:
            raise first_cause(failed) from failed

    async def _fail_at_end(self) -> None:
        await self._ended.wait()
        raise Unavailable(f"Process {self.pid} has ended.", slug="vmm_gone")

    async def settle(self, limit_s: float) -> bool:
        """Give it time to end by itself, holding back a cancel; returns whether it has."""
        return await uncancelled(self._ended, limit_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def kill(self, limit_s: float = KILL_LIMIT_S) -> int:
        """SIGKILL it and return when it is reaped, even if the caller is cancelled meanwhile; the cancel comes after.

        Raises Unavailable (``vmm_stuck``) when the kernel does not let go of it within ``limit_s``.
        """
        self.signal(signal.SIGKILL)
        await uncancelled(self._ended, limit_s)
        if self._code is None:
            raise Unavailable(
                f"Process {self.pid} did not die within {limit_s:g} s of SIGKILL: it hangs in the kernel, probably on"
                " this host's disk. Look at the kernel log; restart the host if it stays.",
                slug="vmm_stuck",
            )
        return self._code

    def _on_end(self) -> None:
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # another process is its parent
            self._code = UNKNOWN_CODE
        else:
            if result is None:  # a tracer holds it back; the loop calls again
                return
            self._code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._ended.set()

    def _release(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)


@asynccontextmanager
async def watch(pid: int, expected: Identity | None = None, *, spared: bool = False) -> AsyncIterator[Process]:
    """Hold process ``pid``, a child or not; when the context is left it is dead and reaped, unless it is ``spared``.

    Raises NotFound (``vmm_gone``) when there is none, or when it is not ``expected``.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise NotFound(f"There is no process {pid}.", slug="vmm_gone") from error
    try:
        identity = identify(pid)  # of the very process that the pidfd holds, or of none when that has been reaped
        if expected is not None and identity != expected:
            raise NotFound(f"Process {pid} is another one now.", slug="vmm_gone")
    except BaseException:
        os.close(pidfd)
        raise
    process = Process(identity, pidfd, spared=spared)
    try:
        yield process
    finally:
        try:
            if not process.spared:
                await process.kill()
        finally:
            process._release()


async def uncancelled(event: asyncio.Event, limit_s: float) -> bool:
    """Wait for ``event`` at most ``limit_s``, holding back a cancel until then; returns whether it is set."""
    deadline = asyncio.get_running_loop().time() + limit_s
    cancel: asyncio.CancelledError | None = None
    while not event.is_set():
        try:
            async with asyncio.timeout_at(deadline):
                await event.wait()
        except TimeoutError:
            break
        except asyncio.CancelledError as error:
            cancel = error
    if cancel is not None:
        raise cancel
    return event.is_set()


def _is_readable(pidfd: int) -> bool:
    """Whether the process has ended (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
