"""All processes started through envd, from the start to 30 s after the end.

The table is a context: when it is left, every process it started is dead and waited for. It needs no task of its own;
its processes are callbacks of the event loop.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.envd import pty, sessions, shim
from wrenn_sandbox.envd.activity import occupied
from wrenn_sandbox.envd.cgroups import Cgroups, Group, protect_self
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.output import OutputLog
from wrenn_sandbox.envd.process import Descriptors, Process
from wrenn_sandbox.envd.users import User

#: How long the end of a process is kept for those who come to ask.
KEEP_ENDED_S = 30.0
#: Of how many ended processes the last output is kept as well.
KEEP_TAILS = 64
#: How long leaving the table waits for killed processes.
REAP_S = 5.0
MAX_OPEN_FILES = 65536


@dataclass(frozen=True, slots=True)
class Program:
    """What to start. ``terminal`` is its size when it is to have one; ``stdin`` false means /dev/null."""

    command: tuple[bytes, ...]
    environment: dict[bytes, bytes]
    user: User
    workdir: str
    terminal: pty.Size | None
    stdin: bool
    tag: str | None


@dataclass(slots=True)
class _Entry:
    """A process under its pid, with what the request called it; ``label`` is the caller's and only handed back."""

    process: Process
    tag: str | None
    label: object
    expiry: asyncio.TimerHandle | None = None


class ProcessTable:
    """The processes of one guest. Enter it before the first start."""

    def __init__(self, context: GuestContext) -> None:
        self._context = context
        self._live: dict[int, _Entry] = {}
        self._ended: dict[int, _Entry] = {}  # in the order they ended
        self._tails: deque[OutputLog] = deque()
        self._leftovers: dict[int, Process] = {}  # ended, but not all of their families
        self._closing = False
        self._idle = asyncio.Event()
        self._null = -1

    async def __aenter__(self) -> ProcessTable:
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MAX_OPEN_FILES), hard))
        if self._context.is_guest:
            protect_self(self._context.log)
            if self._context.cgroups is None:
                self._context.cgroups = Cgroups.prepare(self._context.log)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        for process in [*(entry.process for entry in self._live.values()), *self._leftovers.values()]:
            process.abandon()
        with suppress(TimeoutError):
            async with asyncio.timeout(REAP_S):
                while self._live:
                    self._idle.clear()
                    await self._idle.wait()
        if self._live:
            self._context.log.error("processes %s do not die", list(self._live))
        for entry in self._ended.values():
            if entry.expiry is not None:
                entry.expiry.cancel()
        self._ended.clear()
        self._leftovers.clear()
        os.close(self._null)

    def start(self, program: Program, label: object) -> Process:
        """Start a process; ConnectError when it cannot be. ``label`` comes back from ``live``."""
        if self._closing:
            raise ConnectError(Code.UNAVAILABLE, "The sandbox is shutting down.")
        if program.tag is not None and any(entry.tag == program.tag for entry in self._live.values()):
            raise ConnectError(
                Code.ALREADY_EXISTS, f"A running process has the tag '{program.tag}'; use another or end that one."
            )
        with self._descriptors(program) as (ours, theirs, keep):
            pid = shim.spawn(self._context, self._launch(program, theirs))
            try:
                process = Process(pid, ours, self._on_end)
            except OSError as error:
                sessions.kill_session(pid)
                os.waitpid(pid, 0)
                raise shim.spawn_error(error) from error
            keep.pop_all()
        self._forget(pid)
        self._live[pid] = _Entry(process, program.tag, label)
        self._context.activity.begun()
        return process

    def busy(self) -> bool:
        """A program runs: one of these processes, or what one left behind."""
        return bool(self._live) or occupied(self._context.cgroups)

    def live(self) -> Iterator[tuple[Process, str | None, object]]:
        """Process, tag and label of all that run, oldest first."""
        for entry in self._live.values():
            yield entry.process, entry.tag, entry.label

    def by_pid(self, pid: int) -> Process:
        """The running or just ended process with that pid; ConnectError ``not_found``."""
        entry = self._live.get(pid) or self._ended.get(pid)
        if entry is None:
            raise ConnectError(Code.NOT_FOUND, f"process with pid {pid} not found")
        return entry.process

    def by_tag(self, tag: str) -> Process:
        """The running process with that tag, else the last ended one; ConnectError ``not_found``."""
        for entry in [*self._live.values(), *reversed(self._ended.values())]:
            if entry.tag == tag:
                return entry.process
        raise ConnectError(Code.NOT_FOUND, f"process with tag '{tag}' not found")

    def _launch(self, program: Program, fds: tuple[int, int, int]) -> shim.Launch:
        cgroups = self._context.cgroups
        group = Group.PTYS if program.terminal is not None else Group.USER
        return shim.Launch(
            command=program.command,
            environment=program.environment,
            user=program.user,
            workdir=program.workdir,
            fds=fds,
            terminal=program.terminal is not None,
            cgroup_procs=cgroups.procs(group) if cgroups is not None else None,
        )

    @contextmanager
    def _descriptors(self, program: Program) -> Iterator[tuple[Descriptors, tuple[int, int, int], ExitStack]]:
        """Our ends, the process's ends, and what closes ours unless they are taken; the others are always closed."""
        with ExitStack() as keep, ExitStack() as close:
            try:
                if program.terminal is not None:
                    ours, theirs = pty.open_pty(program.terminal, program.user)
                    keep.callback(os.close, ours)
                    keep.callback(os.close, theirs)
                    yield Descriptors(terminal=ours, terminal_slave=theirs), (theirs, theirs, theirs), keep
                    return
                stdin = None
                their_in = self._null
                if program.stdin:
                    their_in, stdin = os.pipe()
                    close.callback(os.close, their_in)
                    keep.callback(os.close, stdin)
                    os.set_blocking(stdin, False)
                outputs = []
                for _ in range(2):
                    ours, theirs = os.pipe()
                    keep.callback(os.close, ours)
                    close.callback(os.close, theirs)
                    os.set_blocking(ours, False)
                    outputs.append((ours, theirs))
                (stdout, their_out), (stderr, their_err) = outputs
            except OSError as error:
                raise shim.spawn_error(error) from error
            yield Descriptors(stdin, stdout, stderr), (their_in, their_out, their_err), keep

    def _on_end(self, process: Process) -> None:
        entry = self._live.pop(process.pid)
        if process.leaves_something:
            self._leftovers = {p.pid: p for p in self._leftovers.values() if p.leaves_something}
            self._leftovers[process.pid] = process
        self._ended[process.pid] = entry
        entry.expiry = asyncio.get_running_loop().call_later(KEEP_ENDED_S, self._forget, process.pid)
        self._tails.append(process.log)
        if len(self._tails) > KEEP_TAILS:
            self._tails.popleft().forget_tail()
        if not self._live:
            self._idle.set()

    def _forget(self, pid: int) -> None:
        entry = self._ended.pop(pid, None)
        if entry is not None and entry.expiry is not None:
            entry.expiry.cancel()
