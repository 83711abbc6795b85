"""One jailed QEMU, from its start to its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.vmm import record
from wrenn_sandbox.vmm.driver import Exit, MachineSpec
from wrenn_sandbox.vmm.launch import Plan, jailed
from wrenn_sandbox.vmm.log import Log, found_log, new_log
from wrenn_sandbox.vmm.process import Process, watch
from wrenn_sandbox.vmm.qemu import argv, ending, qmp
from wrenn_sandbox.vmm.qemu.argv import Mode
from wrenn_sandbox.vmm.qemu.qmp import Monitor
from wrenn_sandbox.vmm.qemu.tsc import host_tsc_khz

#: Loading the state takes 2 ms; more only on a host that hardly moves.
LOAD_LIMIT_S = 20.0
#: From the end of the connection to the end of the process.
_DEATH_LIMIT_S = 2.0
_SAVE_FDSET = 2
_RUNNING_EVENT = "RESUME"  # sent whenever the vCPUs start


class QemuMachine:
    """A live QEMU. Made by ``booted``, ``restored`` and ``adopted``."""

    def __init__(self, process: Process, monitor: Monitor, console: Log, stderr: Log) -> None:
        self._process = process
        self._monitor = monitor
        self._console = console
        self._stderr = stderr

    @property
    def pid(self) -> int:
        """Process id on the host."""
        return self._process.pid

    @property
    def console(self) -> str:
        """What the guest wrote to its console; bounded, the beginning is kept."""
        return self._console.text()

    async def pause(self) -> None:
        """Stop the vCPUs; QEMU writes its disk caches back on the way."""
        await self._monitor.execute("stop")

    async def resume(self) -> None:
        """Let the vCPUs run."""
        await self._monitor.execute("cont")

    async def snapshot(self, state: Path) -> None:
        """Write the device state to the new file ``state`` and sync it; the machine is stopped afterwards."""
        await self.pause()
        # O_RDWR is refused by QEMU's file: migration. The VMM's uid gets this one descriptor and no more.
        fd = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await self._monitor.execute_with_file(
                "xen-save-devices-state", fd, _SAVE_FDSET, filename=f"/dev/fdset/{_SAVE_FDSET}", live=False
            )
        except BaseException:
            state.unlink()
            raise
        finally:
            os.close(fd)
        await asyncio.to_thread(_sync, state)

    async def wait(self) -> Exit:
        """Return when QEMU has ended."""
        code = await self._process.wait()
        return Exit(code, ending.describe(code, self._console.text(), self._stderr.text()))

    async def load(self) -> None:
        """Load the state this QEMU was started with, and return when its vCPUs run."""
        async with _explained(self._process, self._console, self._stderr):
            with self._monitor.listening_for(_RUNNING_EVENT) as events:
                await self._monitor.execute("migrate-incoming", uri=f"file:/dev/fdset/{argv.STATE_FDSET}")
                try:
                    async with asyncio.timeout(LOAD_LIMIT_S), self._process.required():
                        await events.get()
                except TimeoutError as error:
                    raise Unavailable(
                        f"The machine did not load its state within {LOAD_LIMIT_S:g} s.", slug="vmm_unresponsive"
                    ) from error


@asynccontextmanager
async def _explained(process: Process, console: Log, stderr: Log) -> AsyncIterator[None]:
    """While a machine is brought up: when it dies, raise why (``vmm_failed``), not that its connection was lost."""
    try:
        yield
    except Unavailable as error:
        if error.slug == "vmm_gone" and await process.settle(_DEATH_LIMIT_S) and process.code is not None:
            reason = ending.describe(process.code, console.text(), stderr.text())
            raise Unavailable(reason, slug="vmm_failed") from error
        raise


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@asynccontextmanager
async def booted(spec: MachineSpec) -> AsyncIterator[QemuMachine]:
    """Cold boot with RAM in the new file ``spec.files.memory``; the vCPUs run on entry."""
    with _memory(spec):
        tsc_khz = await asyncio.to_thread(host_tsc_khz)
        async with _started(spec, Mode.BOOT, {}, tsc_khz) as machine:
            yield machine


@asynccontextmanager
async def restored(spec: MachineSpec, state: Path) -> AsyncIterator[QemuMachine]:
    """Restore from ``spec.files.memory`` and ``state``; the vCPUs run on entry."""
    async with AsyncExitStack() as stack:
        fd = os.open(state, os.O_RDONLY | os.O_CLOEXEC)
        try:
            machine = await stack.enter_async_context(_started(spec, Mode.RESTORE, {argv.STATE_FD: fd}))
        finally:
            os.close(fd)
        await machine.load()
        yield machine


@asynccontextmanager
async def adopted(spec: MachineSpec, pid: int) -> AsyncIterator[QemuMachine]:
    """Take over the QEMU ``pid`` that another agent started; raises NotFound (``vmm_gone``) when it is not alive."""
    expected = record.confirmed(spec.run_dir, pid)
    async with AsyncExitStack() as stack:
        stack.enter_context(record.kept(spec.run_dir, qmp.SOCKET))
        stack.enter_context(_given(spec.files.disk, spec))
        process = await stack.enter_async_context(watch(pid, expected))
        if process.code is not None:
            raise NotFound(f"The machine of {spec.name} has ended.", slug="vmm_gone")
        console = stack.enter_context(found_log(pid, argv.CONSOLE_FD))
        stderr = stack.enter_context(found_log(pid, argv.STDERR_FD))
        monitor = await stack.enter_async_context(qmp.connected(spec.name, spec.run_dir))
        yield QemuMachine(process, monitor, console, stderr)


@asynccontextmanager
async def _started(
    spec: MachineSpec, mode: Mode, fds: dict[int, int], tsc_khz: int | None = None
) -> AsyncIterator[QemuMachine]:
    async with AsyncExitStack() as stack:
        stack.enter_context(record.kept(spec.run_dir, qmp.SOCKET))
        stack.enter_context(_given(spec.files.disk, spec))
        console = stack.enter_context(new_log("console"))
        stderr = stack.enter_context(new_log("stderr"))
        tap = {} if spec.tap_fd is None else {argv.TAP_FD: spec.tap_fd}
        # Only QEMU may hold the listening end: when it dies, a connection must end too.
        with qmp.listening(spec.run_dir) as server:
            streams = {argv.CONSOLE_FD: console.fd, argv.STDERR_FD: stderr.fd, argv.QMP_FD: server.fileno()}
            plan = Plan(
                name=spec.name,
                directory=spec.run_dir,
                files=argv.jail_files(spec, mode),
                argv=argv.build(spec, mode, tsc_khz),
                fds={**streams, **tap, **fds},
                uid=spec.uid,
                gid=spec.gid,
                kvm=spec.platform.accelerator == "kvm",
            )
            process = await stack.enter_async_context(jailed(plan))
        async with _explained(process, console, stderr):
            monitor = await stack.enter_async_context(qmp.connected(spec.name, spec.run_dir))
        yield QemuMachine(process, monitor, console, stderr)


@contextmanager
def _given(path: Path, spec: MachineSpec) -> Iterator[None]:
    """``path`` is the VMM's uid's own inside; root's afterwards, and readable as a layer for VMMs of any other uid."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchown(fd, spec.uid, spec.gid)
        os.fchmod(fd, 0o600)
        yield
    finally:  # the machine is dead on every way out; the file may have another name by now
        os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o644)
        os.close(fd)


@contextmanager
def _memory(spec: MachineSpec) -> Iterator[None]:
    """The new RAM file of a boot."""
    path = spec.files.memory
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, spec.shape.memory_mib << 20)
        with _given(path, spec):
            yield
    finally:
        os.close(fd)
