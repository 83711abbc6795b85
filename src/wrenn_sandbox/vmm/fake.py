"""A VMM without a machine: envd as a plain process of this host, for tests and for work on a machine without QEMU.

It keeps the protocol's promises about life and death, and none about isolation: programs in such a sandbox are programs
on this host. "Memory" does not survive: a restore starts a fresh envd. It needs no root.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from wrenn_sandbox.core.artefacts import Platform
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.core.slots import ENVD_PORT
from wrenn_sandbox.core.spec import MEMORY_MIB_CHOICES, VCPU_CHOICES
from wrenn_sandbox.vmm import keeper, record
from wrenn_sandbox.vmm.driver import Capabilities, Exit, MachineSpec
from wrenn_sandbox.vmm.log import Log, found_log, new_log
from wrenn_sandbox.vmm.process import Process, become_subreaper, identify, start, watch
from wrenn_sandbox.vmm.shim import SHIM_VARIABLE

ANSWER_LIMIT_S = 30.0
_PROBE_EVERY_S = 0.01


def envd_command(spec: MachineSpec) -> tuple[str, ...]:
    """Envd on the address where the guest's would answer."""
    where = ("--host", spec.host_ip, "--port", str(ENVD_PORT))
    return (sys.executable, "-m", "wrenn_sandbox.envd", "--not-a-guest", *where)


class FakeMachine:
    """A process tree that plays a machine: a keeper, envd ``pid``, and the programs of the sandbox."""

    def __init__(self, process: Process, pid: int, console: Log) -> None:
        self._process = process
        self._pid = pid
        self._console = console

    @property
    def pid(self) -> int:
        """Process id of envd."""
        return self._pid

    @property
    def console(self) -> str:
        """What envd wrote; bounded, the beginning is kept."""
        return self._console.text()

    async def pause(self) -> None:
        """Stop every process of the tree."""
        self._require_alive()
        keeper.stop(self._process.pid)

    async def resume(self) -> None:
        """Let every process of the tree go on."""
        self._require_alive()
        for pid in keeper.descendants(self._process.pid):
            keeper.send(pid, signal.SIGCONT)

    async def snapshot(self, state: Path) -> None:
        """Write a small file that ``restore`` recognises; the tree is stopped afterwards."""
        await self.pause()
        with state.open("x") as file:
            json.dump({"driver": "fake"}, file)

    async def wait(self) -> Exit:
        """Return when envd has ended."""
        code = await self._process.wait()
        how = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
        said = self._console.text().strip().rpartition("\n")[2][-200:]
        return Exit(code, f"The machine's envd {how}{f': {said}' if said else ''}.")

    def _require_alive(self) -> None:
        if self._process.code is not None:
            raise Unavailable(f"Process {self._pid} has ended.", slug="vmm_gone")


class FakeDriver:
    """Machines that are processes; ``command`` says what plays the guest, ``shim`` starts the programs in it."""

    def __init__(
        self, command: Callable[[MachineSpec], Sequence[str]] = envd_command, *, shim: Path | None = None
    ) -> None:
        self._command = command
        self._env = {"PATH": os.environ.get("PATH", os.defpath)} | ({SHIM_VARIABLE: str(shim)} if shim else {})

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

    def boot(self, spec: MachineSpec) -> AbstractAsyncContextManager[FakeMachine]:
        """Start envd; the RAM file is made, and stays empty."""
        return self._booted(spec)

    def restore(self, spec: MachineSpec, state: Path) -> AbstractAsyncContextManager[FakeMachine]:
        """Start a fresh envd; ``state`` must be one of ``snapshot``."""
        return self._restored(spec, state)

    def adopt(self, spec: MachineSpec, pid: int) -> AbstractAsyncContextManager[FakeMachine]:
        """Take over an envd that another agent started."""
        return _adopted(spec, pid)

    @asynccontextmanager
    async def _booted(self, spec: MachineSpec) -> AsyncIterator[FakeMachine]:
        spec.files.memory.touch(mode=0o644, exist_ok=False)
        async with self._started(spec) as machine:
            yield machine

    @asynccontextmanager
    async def _restored(self, spec: MachineSpec, state: Path) -> AsyncIterator[FakeMachine]:
        try:
            known = json.loads(state.read_text()) == {"driver": "fake"} and spec.files.memory.exists()
        except ValueError:
            known = False
        if not known:
            raise Unavailable(f"{state} is no state of the fake VMM.", slug="vmm_failed")
        async with self._started(spec) as machine:
            yield machine

    @asynccontextmanager
    async def _started(self, spec: MachineSpec) -> AsyncIterator[FakeMachine]:
        become_subreaper()
        async with AsyncExitStack() as stack:
            stack.enter_context(record.kept(spec.run_dir))
            console = stack.enter_context(new_log("console"))
            process, pid = await _kept(self._command(spec), self._env, console, stack)
            record.write(spec.run_dir, identify(pid))
            machine = FakeMachine(process, pid, console)
            await _answering(machine, process, spec)
            yield machine


async def _kept(
    command: Sequence[str], env: Mapping[str, str], console: Log, stack: AsyncExitStack
) -> tuple[Process, int]:
    """Start ``command`` under a keeper on ``stack``; the keeper and the pid of the command."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            ours.setblocking(False)
            fds = {1: console.fd, 2: console.fd, keeper.REPORT_FD: theirs.fileno()}
            pid = start((sys.executable, "-I", keeper.__file__, *command), fds=fds, env=env)
        process = await stack.enter_async_context(_tree(pid))
        async with asyncio.timeout(ANSWER_LIMIT_S):
            report = await asyncio.get_running_loop().sock_recv(ours, 32)
    if not report:
        raise Unavailable("The keeper of a fake machine ended at once.", slug="vmm_failed")
    return process, int(report)


@asynccontextmanager
async def _adopted(spec: MachineSpec, pid: int) -> AsyncIterator[FakeMachine]:
    record.confirmed(spec.run_dir, pid)
    become_subreaper()
    async with AsyncExitStack() as stack:
        stack.enter_context(record.kept(spec.run_dir))
        process = await stack.enter_async_context(_tree(keeper.parent(pid)))
        yield FakeMachine(process, pid, stack.enter_context(found_log(pid, 1)))


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
async def _tree(pid: int) -> AsyncIterator[Process]:
    """Hold the keeper ``pid``; when the context is left it and all below it is dead and reaped."""
    below: list[int] = []
    async with AsyncExitStack() as stack, watch(pid) as process:
        try:
            yield process
        finally:
            process.signal(signal.SIGSTOP)
            below += keeper.stop(pid)
            for child in below:
                with contextlib.suppress(NotFound):  # a zombie that the keeper had just reaped
                    await stack.enter_async_context(watch(child))
        # Now the keeper is dead and what was below it is ours to kill and reap.
    _reap(below)


def _reap(pids: Sequence[int]) -> None:
    """Collect the dead whose own parent, dead by now, had not: they were handed down to us."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
