"""One jailed QEMU, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.disk.durability import disk_errors
from wrenn_sandbox.vmm import ram, record
from wrenn_sandbox.vmm.cancels import in_thread, to_the_end
from wrenn_sandbox.vmm.driver import Exit, MachineSpec, Ram
from wrenn_sandbox.vmm.launch import Plan, jailed
from wrenn_sandbox.vmm.loan import Loan, lending
from wrenn_sandbox.vmm.log import Log, found_log, new_log
from wrenn_sandbox.vmm.process import Process, watch
from wrenn_sandbox.vmm.qemu import argv, ending, qmp
from wrenn_sandbox.vmm.qemu.argv import Mode
from wrenn_sandbox.vmm.qemu.disk import Disk
from wrenn_sandbox.vmm.qemu.pace import Pace
from wrenn_sandbox.vmm.qemu.qmp import Monitor
from wrenn_sandbox.vmm.qemu.tsc import host_tsc_khz

#: Loading the state takes 2 ms; more only on a host that hardly moves.
LOAD_LIMIT_S = 20.0
#: From the end of the connection to the end of the process.
_DEATH_LIMIT_S = 2.0
_STATE_ROOM_BYTES = 64 * 1024  # states have 5 to 13 KB
_RUNNING_EVENT = "RESUME"  # sent whenever the vCPUs start


@dataclass(frozen=True, slots=True)
class Logs:
    """What one QEMU writes."""

    console: Log
    stderr: Log


class QemuMachine:
    """A live QEMU. Made by ``booted``, ``restored`` and ``adopted``."""

    def __init__(self, process: Process, monitor: Monitor, logs: Logs, ram: Ram, *, disk: Disk, pace: Pace) -> None:
        self._process = process
        self._monitor = monitor
        self._pace = pace
        self._logs = logs
        self._ram = ram
        self._disk = disk

    @property
    def pid(self) -> int:
        """Process id on the host."""
        return self._process.pid

    @property
    def console(self) -> str:
        """What the guest wrote to its console; bounded, the beginning is kept."""
        return self._logs.console.text()

    @property
    def ram(self) -> Ram:
        """Where the guest's memory is mapped."""
        return self._ram

    @property
    def stalled(self) -> str:
        """See ``vmm.driver``."""
        return "host_disk_full" if self._pace.lacks_room else ""

    async def pause(self) -> None:
        """Stop the vCPUs; QEMU writes its disk caches back on the way."""
        await self._pace.stop()

    async def resume(self) -> None:
        """Let the vCPUs run."""
        await self._pace.go()

    async def snapshot(self, state: Path, overlay: Path | None = None) -> None:
        """See ``vmm.driver``. All that can be made ready while the guest still runs is."""
        async with AsyncExitStack() as stack:
            fdset = await stack.enter_async_context(self._receiving(state))
            node = None if overlay is None else await stack.enter_async_context(self._disk.beside(overlay))
            await self.pause()
            await self._monitor.execute("xen-save-devices-state", filename=f"/dev/fdset/{fdset}", live=False)
            if node is not None:
                await self._disk.cover(node)

    async def writes_to(self, overlay: Path) -> bool:
        """Whether the guest's disk writes go to this file."""
        return await self._disk.writes_to(overlay)

    @asynccontextmanager
    async def _receiving(self, state: Path) -> AsyncIterator[int]:
        """An fdset for the new file ``state``, which is removed again when this is left by an error."""
        # O_RDWR is refused by QEMU's file: migration. The VMM's uid gets this one descriptor and no more.
        fd = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fdset = self._monitor.new_fdset()
        try:
            await self._monitor.add_fd(fd, fdset, "state")
            yield fdset
        except BaseException as error:
            state.unlink()
            if isinstance(error, Unavailable) and error.slug == "vmm_refused":
                _require_room(fd)
            raise
        finally:
            os.close(fd)
            with contextlib.suppress(Unavailable):  # nothing was given, or the machine has gone
                await to_the_end(self._monitor.execute("remove-fd", fdset_id=fdset))

    async def wait(self) -> Exit:
        """Return when QEMU has ended."""
        code = await self._process.wait()
        return Exit(code, ending.describe(code, self._logs.console.text(), self._logs.stderr.text()))

    async def load(self) -> None:
        """Load the state this QEMU was started with, and return when its vCPUs run."""
        async with _explained(self._process, self._logs):
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
async def booted(spec: MachineSpec) -> AsyncIterator[QemuMachine]:
    """Cold boot with RAM in the new file ``spec.files.memory``; the vCPUs run on entry."""
    with lending(spec.uid, spec.gid) as loan:
        _make_memory(spec)
        loan.give(spec.files.memory)
        tsc_khz = await in_thread(host_tsc_khz)
        async with _started(spec, Mode.BOOT, {}, tsc_khz) as machine:
            yield machine


@asynccontextmanager
async def restored(spec: MachineSpec, state: Path) -> AsyncIterator[QemuMachine]:
    """Restore from ``spec.files`` and ``state``; the vCPUs run on entry."""
    async with AsyncExitStack() as stack:
        fd = os.open(state, os.O_RDONLY | os.O_CLOEXEC)
        try:
            machine = await stack.enter_async_context(_started(spec, Mode.RESTORE, {argv.STATE_FD: fd}))
        finally:
            os.close(fd)
        if spec.files.patches:
            await in_thread(ram.apply, machine.ram, spec.files.patches)
        await machine.load()
        yield machine


@asynccontextmanager
async def adopted(spec: MachineSpec, pid: int) -> AsyncIterator[QemuMachine]:
    """Take over the QEMU ``pid`` that another agent started; raises NotFound (``vmm_gone``) when it is not alive.

    Until all of that is done it is not ours to end.
    """
    expected = record.confirmed(spec.run_dir, pid)
    async with AsyncExitStack() as stack:
        dead = stack.enter_context(ExitStack())  # what is to be done when it has ended
        loan = Loan(spec.uid, spec.gid)
        dead.callback(loan.forget)
        process = await stack.enter_async_context(watch(pid, expected, spared=True))
        if process.code is not None:
            raise NotFound(f"The machine of {spec.name} has ended.", slug="vmm_gone")
        console = stack.enter_context(found_log(pid, argv.CONSOLE_FD))
        stderr = stack.enter_context(found_log(pid, argv.STDERR_FD))
        monitor = await stack.enter_async_context(qmp.connected(spec.name, spec.run_dir))
        await _require_loaded(monitor, spec)
        disk = Disk(monitor, pid, loan)
        await disk.adopt(spec)
        pace = Pace(spec.name, monitor, held=True)
        await stack.enter_async_context(pace.kept())
        where = ram.locate(pid, spec.files.memory)
        dead.enter_context(record.kept(spec.run_dir, qmp.SOCKET))
        dead.callback(loan.end)
        process.spared = False
        yield QemuMachine(process, monitor, Logs(console, stderr), where, disk=disk, pace=pace)


@asynccontextmanager
async def _started(
    spec: MachineSpec, mode: Mode, fds: dict[int, int], tsc_khz: int | None = None
) -> AsyncIterator[QemuMachine]:
    async with AsyncExitStack() as stack:
        stack.enter_context(record.kept(spec.run_dir, qmp.SOCKET))
        loan = stack.enter_context(lending(spec.uid, spec.gid))
        loan.give(spec.files.disk)
        logs = Logs(stack.enter_context(new_log("console")), stack.enter_context(new_log("stderr")))
        tap = {} if spec.tap_fd is None else {argv.TAP_FD: spec.tap_fd}
        # Only QEMU may hold the listening end: when it dies, a connection must end too.
        with qmp.listening(spec.run_dir) as server:
            streams = {argv.CONSOLE_FD: logs.console.fd, argv.STDERR_FD: logs.stderr.fd, argv.QMP_FD: server.fileno()}
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
        async with _explained(process, logs):
            monitor = await stack.enter_async_context(qmp.connected(spec.name, spec.run_dir))
        disk = Disk(monitor, process.pid, loan, argv.DISK_NODE)
        pace = Pace(spec.name, monitor)
        await stack.enter_async_context(pace.kept())
        yield QemuMachine(process, monitor, logs, ram.locate(process.pid, spec.files.memory), disk=disk, pace=pace)


@asynccontextmanager
async def _explained(process: Process, logs: Logs) -> AsyncIterator[None]:
    """While a machine is brought up: when it dies, raise why (``vmm_failed``), not that its connection was lost."""
    try:
        yield
    except Unavailable as error:
        if error.slug == "vmm_gone" and await process.settle(_DEATH_LIMIT_S) and process.code is not None:
            reason = ending.describe(process.code, logs.console.text(), logs.stderr.text())
            raise Unavailable(reason, slug="vmm_failed") from error
        raise


def _require_room(fd: int) -> None:
    """Raise Exhausted when there is no room for a state: QEMU does not say why it could not write one."""
    with disk_errors("the state of a machine"):
        os.posix_fallocate(fd, 0, _STATE_ROOM_BYTES)


async def _require_loaded(monitor: Monitor, spec: MachineSpec) -> None:
    """An agent may have died before its machine was one."""
    if cast(dict[str, object], await monitor.execute("query-status"))["status"] == "inmigrate":
        raise NotFound(f"The machine of {spec.name} never ran.", slug="vmm_gone")


def _make_memory(spec: MachineSpec) -> None:
    """The new RAM file of a boot."""
    fd = os.open(spec.files.memory, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, spec.shape.memory_mib << 20)
    finally:
        os.close(fd)
