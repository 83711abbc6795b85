"""A VMM without a machine: envd as a plain process of this host, for tests and for work on a machine without QEMU.

It keeps the protocol's promises about life and death, and none about isolation: programs in such a sandbox are programs
on this host. Nothing that runs survives: a restore starts a fresh envd. Its memory is a real mapping of a real RAM
file, empty until somebody writes to it from outside, and is restored, patched and found changed as a VMM's is. It
needs no root.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

from wrenn_sandbox.core.artefacts import Platform
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.core.slots import ENVD_PORT
from wrenn_sandbox.core.spec import MEMORY_MIB_CHOICES, VCPU_CHOICES
from wrenn_sandbox.vmm import keeper, ram, record
from wrenn_sandbox.vmm.cancels import in_thread
from wrenn_sandbox.vmm.driver import Capabilities, Exit, MachineSpec, Ram
from wrenn_sandbox.vmm.log import Log, found_log, new_log
from wrenn_sandbox.vmm.process import Process, become_subreaper, identify, start, watch
from wrenn_sandbox.vmm.shim import SHIM_VARIABLE

ANSWER_LIMIT_S = 30.0
_PROBE_EVERY_S = 0.01
DISK_NOTE = "disk.json"
_STATE = {"driver": "fake"}


def envd_command(spec: MachineSpec) -> tuple[str, ...]:
    """Envd on the address where the guest's would answer."""
    where = ("--host", spec.host_ip, "--port", str(ENVD_PORT))
    return (sys.executable, "-m", "wrenn_sandbox.envd", "--not-a-guest", *where)


#: Called with the name of a step before it is done: start, patch, load, pause, state, overlay, resume, adopt.
Faults = Callable[[str], Awaitable[None]]


async def no_faults(_: str) -> None:
    """Every step is done."""


class FakeMachine:
    """A process tree that plays a machine: a keeper with the memory, envd ``pid``, and the programs of the sandbox."""

    def __init__(self, process: Process, pid: int, console: Log, *, disk: FakeDisk, ram: Ram, faults: Faults) -> None:
        self._process = process
        self._pid = pid
        self._console = console
        self._disk = disk
        self._ram = ram
        self._faults = faults

    @property
    def pid(self) -> int:
        """Process id of envd."""
        return self._pid

    @property
    def console(self) -> str:
        """What envd wrote; bounded, the beginning is kept."""
        return self._console.text()

    @property
    def ram(self) -> Ram:
        """The keeper's mapping of the RAM file."""
        return self._ram

    @property
    def stalled(self) -> str:
        """Never: what its programs write to a full disk fails."""
        return ""

    async def pause(self) -> None:
        """Stop every process of the tree."""
        await self._faults("pause")
        self._require_alive()
        keeper.stop(self._process.pid)

    async def resume(self) -> None:
        """Let every process of the tree go on."""
        await self._faults("resume")
        self._require_alive()
        for pid in keeper.descendants(self._process.pid):
            keeper.send(pid, signal.SIGCONT)

    async def snapshot(self, state: Path, overlay: Path | None = None) -> None:
        """Write a small file that ``restore`` recognises; the tree is stopped afterwards."""
        await self.pause()
        await self._faults("state")
        with state.open("x") as file:
            json.dump(_STATE, file)
        try:
            if overlay is not None:
                await self._faults("overlay")
                self._disk.cover(overlay)
        except BaseException:
            state.unlink()
            raise

    async def writes_to(self, overlay: Path) -> bool:
        """Whether this is the machine's top overlay."""
        return self._disk.writes_to(overlay)

    async def wait(self) -> Exit:
        """Return when envd has ended."""
        code = await self._process.wait()
        how = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
        said = self._console.text().strip().rpartition("\n")[2][-200:]
        return Exit(code, f"The machine's envd {how}{f': {said}' if said else ''}.")

    def _require_alive(self) -> None:
        if self._process.code is not None:
            raise Unavailable(f"Process {self._pid} has ended.", slug="vmm_gone")


class FakeDisk:
    """Which file a fake machine would write to: noted in its directory, where the next agent finds it."""

    def __init__(self, run_dir: Path) -> None:
        self._note = run_dir / DISK_NOTE

    def cover(self, overlay: Path) -> None:
        """``overlay``, which must exist, is the machine's from now on."""
        info = overlay.stat()
        aside = self._note.with_suffix(".new")
        aside.write_text(json.dumps([info.st_dev, info.st_ino]))
        aside.replace(self._note)

    def writes_to(self, overlay: Path) -> bool:
        """Whether ``overlay`` is the machine's."""
        try:
            info = overlay.stat()
        except FileNotFoundError:
            return False
        noted: object = json.loads(self._note.read_text())
        return noted == [info.st_dev, info.st_ino]


class FakeDriver:
    """Machines that are processes; ``command`` says what plays the guest, ``shim`` starts the programs in it.

    ``faults`` may delay or fail the steps of every machine, for tests of what happens then.
    """

    def __init__(
        self,
        command: Callable[[MachineSpec], Sequence[str]] = envd_command,
        *,
        shim: Path | None = None,
        faults: Faults = no_faults,
    ) -> None:
        self._command = command
        self._env = {"PATH": os.environ.get("PATH", os.defpath)} | ({SHIM_VARIABLE: str(shim)} if shim else {})
        self._faults = faults

    @property
    def capabilities(self) -> Capabilities:
        """What it can do: everything but be a machine."""
        return Capabilities(
            driver="fake",
            accelerator="none",
            accelerated=False,
            max_vcpus=max(VCPU_CHOICES),
            max_memory_mib=max(MEMORY_MIB_CHOICES),
        )

    def platform(self, kernel_cmdline: str) -> Platform:
        """The platform of templates made here, which no other driver takes."""
        return Platform("fake", "none", "process", "host", kernel_cmdline)

    def tsc_khz(self) -> int:
        """Processes have the host's clocks."""
        return 0

    def boot(self, spec: MachineSpec) -> AbstractAsyncContextManager[FakeMachine]:
        """Start envd beside an empty memory, which is the new RAM file itself."""
        return self._booted(spec)

    def restore(self, spec: MachineSpec, state: Path) -> AbstractAsyncContextManager[FakeMachine]:
        """Start a fresh envd beside a private copy of the memory; ``state`` must be one of ``snapshot``."""
        return self._restored(spec, state)

    def adopt(self, spec: MachineSpec, pid: int) -> AbstractAsyncContextManager[FakeMachine]:
        """Take over an envd that another agent started."""
        return self._adopted(spec, pid)

    @asynccontextmanager
    async def _booted(self, spec: MachineSpec) -> AsyncIterator[FakeMachine]:
        with spec.files.memory.open("xb") as file:
            file.truncate(spec.shape.memory_mib << 20)
        async with self._started(spec, keeper.SHARED) as machine:
            yield machine

    @asynccontextmanager
    async def _restored(self, spec: MachineSpec, state: Path) -> AsyncIterator[FakeMachine]:
        try:
            known = json.loads(state.read_text()) == _STATE
        except ValueError:
            known = False
        if not known or spec.files.memory.stat().st_size != spec.shape.memory_mib << 20:
            raise Unavailable(f"{state} is no state of a fake machine of {spec.shape}.", slug="vmm_failed")
        async with self._started(spec, keeper.PRIVATE) as machine:
            yield machine

    @asynccontextmanager
    async def _started(self, spec: MachineSpec, mode: str) -> AsyncIterator[FakeMachine]:
        become_subreaper()
        async with AsyncExitStack() as stack:
            stack.enter_context(record.kept(spec.run_dir, DISK_NOTE))
            console = stack.enter_context(new_log("console"))
            await self._faults("start")
            kept = await stack.enter_async_context(_kept(spec, mode, self._command(spec), self._env, console))
            where = ram.locate(kept.process.pid, spec.files.memory)
            if mode == keeper.PRIVATE:
                await self._faults("patch")
                await in_thread(ram.apply, where, spec.files.patches)
                await self._faults("load")
            pid = await kept.go()
            record.write(spec.run_dir, identify(pid))
            disk = FakeDisk(spec.run_dir)
            disk.cover(spec.files.disk)
            machine = FakeMachine(kept.process, pid, console, disk=disk, ram=where, faults=self._faults)
            await _answering(machine, kept.process, spec)
            yield machine

    @asynccontextmanager
    async def _adopted(self, spec: MachineSpec, pid: int) -> AsyncIterator[FakeMachine]:
        record.confirmed(spec.run_dir, pid)
        become_subreaper()
        async with AsyncExitStack() as stack:
            dead = stack.enter_context(ExitStack())  # what is to be done when it has ended
            process = await stack.enter_async_context(_tree(_keeper_of(pid), spared=True))
            await self._faults("adopt")
            console = stack.enter_context(found_log(pid, 1))
            where = ram.locate(process.pid, spec.files.memory)
            dead.enter_context(record.kept(spec.run_dir, DISK_NOTE))
            process.spared = False
            disk = FakeDisk(spec.run_dir)
            yield FakeMachine(process, pid, console, disk=disk, ram=where, faults=self._faults)


def _keeper_of(pid: int) -> int:
    """The keeper of envd ``pid``; raises NotFound (``vmm_gone``) when that is dead and somebody else's parent now."""
    above = keeper.parent(pid)
    if os.fsencode(keeper.__file__) not in Path(f"/proc/{above}/cmdline").read_bytes():
        raise NotFound(f"The keeper of {pid} has ended.", slug="vmm_gone")
    return above


class _Kept:
    """A keeper that has mapped the memory and waits."""

    def __init__(self, process: Process, control: socket.socket) -> None:
        self.process = process
        self._control = control

    async def go(self) -> int:
        """Let it start its command; the pid of that."""
        await asyncio.get_running_loop().sock_sendall(self._control, keeper.GO)
        return int(await _heard(self._control))


@asynccontextmanager
async def _kept(
    spec: MachineSpec, mode: str, command: Sequence[str], env: Mapping[str, str], console: Log
) -> AsyncIterator[_Kept]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs, spec.files.memory.open("r+b" if mode == keeper.SHARED else "rb") as memory:
            ours.setblocking(False)
            fds = {1: console.fd, 2: console.fd, keeper.CONTROL_FD: theirs.fileno(), keeper.MEMORY_FD: memory.fileno()}
            pid = start((sys.executable, "-I", keeper.__file__, mode, *command), fds=fds, env=env)
        async with _tree(pid) as process:
            await _heard(ours)
            yield _Kept(process, ours)


async def _heard(control: socket.socket) -> bytes:
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            said = await asyncio.get_running_loop().sock_recv(control, 32)
    except TimeoutError as error:
        raise Unavailable("The keeper of a fake machine is silent.", slug="vmm_unresponsive") from error
    if not said:
        raise Unavailable("The keeper of a fake machine ended at once.", slug="vmm_failed")
    return said


async def _answering(machine: FakeMachine, process: Process, spec: MachineSpec) -> None:
    """Return when envd takes connections: a real guest holds an early one until it runs, a process refuses it."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S), process.required():
            while True:
                with socket.socket() as probe:
                    probe.setblocking(False)
                    try:
                        return await loop.sock_connect(probe, (spec.host_ip, ENVD_PORT))
                    except ConnectionRefusedError:
                        await asyncio.sleep(_PROBE_EVERY_S)
    except TimeoutError as error:
        raise Unavailable(f"envd did not answer within {ANSWER_LIMIT_S:g} s.", slug="vmm_unresponsive") from error
    except Unavailable as error:
        raise Unavailable((await machine.wait()).reason, slug="vmm_failed") from error


@asynccontextmanager
async def _tree(pid: int, *, spared: bool = False) -> AsyncIterator[Process]:
    """Hold the keeper ``pid``; when the context is left it and all below it is dead and reaped, unless it is spared."""
    below: list[int] = []
    try:
        async with AsyncExitStack() as stack, watch(pid, spared=spared) as process:
            try:
                yield process
            finally:
                if not process.spared:
                    process.signal(signal.SIGSTOP)
                    keeper.await_halt(pid)
                    below += keeper.stop(pid)
                    for child in below:
                        with contextlib.suppress(NotFound):  # a zombie that the keeper had just reaped
                            await stack.enter_async_context(watch(child))
            # Now the keeper is dead and what was below it is ours to kill and reap.
    finally:
        _reap(below)


def _reap(pids: Sequence[int]) -> None:
    """Collect the dead whose own parent, dead by now, had not: they were handed down to us."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
