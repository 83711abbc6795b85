"""Start a program in a jail: the agent's side of ``jail``, which has the picture of who tells whom what."""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import resource
import socket
import stat
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from wrenn_sandbox.core.errors import Bug, NotFound, Unavailable
from wrenn_sandbox.vmm import jail, record
from wrenn_sandbox.vmm.process import Process, become_subreaper, start, watch

LAUNCH_LIMIT_S = 10.0
#: First descriptor that a plan's ``fds`` may use; below are the standard streams and the control socket.
FIRST_FD = jail.CONTROL_FD + 1
_OOM_SCORE_ADJ = 500  # before the agent and the rest of the host (proc_pid_oom_score_adj(5))
_MAX_THREADS = 128  # 64 of QEMU's I/O pool, 8 vCPUs, a few more (RLIMIT_NPROC counts threads of the uid)
_MAX_FILES = 256
_MAX_LOCKED_BYTES = 64 * 1024
#: Name, device number and mode, as in devices.txt of the kernel.
_DEVICES = (("null", 1, 3, 0o666), ("zero", 1, 5, 0o666), ("urandom", 1, 9, 0o444))
#: The code travels with the plan, so that an upgrade of the package under a running agent changes nothing.
_BOOTSTRAP = (
    f"import marshal,os;exec(marshal.loads(os.read({jail.CONTROL_FD},{jail.MESSAGE_BYTES})),{{'__name__':'__main__'}})"
)
_CODE = marshal.dumps(compile(Path(jail.__file__).read_text(), jail.__file__, "exec"))


@dataclass(frozen=True, slots=True)
class JailFile:
    """A host file or directory and the absolute name it has in the jail."""

    source: Path
    name: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A jail and the program that runs in it.

    ``fds`` maps numbers in the jail (1, 2, and from FIRST_FD on) to descriptors here.
    """

    name: str
    directory: Path  # root-owned; the record goes here, and the jail's root is mounted over it, in its namespace only
    files: tuple[JailFile, ...]
    argv: Sequence[str]
    fds: Mapping[int, int]
    uid: int
    gid: int
    kvm: bool = False


@asynccontextmanager
async def jailed(plan: Plan) -> AsyncIterator[Process]:
    """Run ``plan``; on entry its program runs, when the context is left it is dead and reaped and the jail is gone.

    Raises Unavailable (``jail_failed``) with the step that failed, and (``vmm_unresponsive``) past LAUNCH_LIMIT_S; an
    OSError when the record cannot be written.
    """
    _check_readable(plan)
    become_subreaper()
    async with AsyncExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                ours.setblocking(False)
                argv = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, "wrenn_sandbox.vmm.jail", plan.name]
                launcher_pid = start(argv, fds={**plan.fds, jail.CONTROL_FD: theirs.fileno()}, env={})
            async with watch(launcher_pid) as launcher:
                try:
                    async with asyncio.timeout(LAUNCH_LIMIT_S):
                        process = await _launch(plan, ours, launcher, stack)
                except TimeoutError as error:
                    raise Unavailable(
                        f"The jail of {plan.name} was not ready within {LAUNCH_LIMIT_S:g} s: the host is overloaded.",
                        slug="vmm_unresponsive",
                    ) from error
                except ConnectionError as error:
                    raise Unavailable(
                        f"The jail of {plan.name} was killed while it was being made.", slug="jail_failed"
                    ) from error
                finally:
                    await _settle(ours, launcher)
        yield process


async def _launch(plan: Plan, control: socket.socket, launcher: Process, stack: AsyncExitStack) -> Process:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(control, _CODE)
    await loop.sock_sendall(control, marshal.dumps(_message(plan)))
    process = await stack.enter_async_context(watch(_pid_in(await received(control))))
    await launcher.wait()  # from here on the new process is our child
    record.write(plan.directory, process.identity)
    await loop.sock_sendall(control, b"go")
    failure = await received(control)
    if failure:
        _pid_in(failure)
    return process


async def received(control: socket.socket) -> bytes:
    """The next message, taken only by a caller that goes on: one that is cancelled leaves it to be found."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(control, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(control)
    return control.recv(jail.MESSAGE_BYTES)


async def _settle(control: socket.socket, launcher: Process) -> None:
    """After a launch that was given up: find the child that may wait for "go", and end it."""
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_WR)
    if launcher.code is None:
        await launcher.settle(LAUNCH_LIMIT_S)
    with contextlib.suppress(OSError, Unavailable, NotFound):
        message = control.recv(jail.MESSAGE_BYTES, socket.MSG_DONTWAIT)
        if message:
            async with watch(_pid_in(message)):
                pass


def _pid_in(message: bytes) -> int:
    if message.isdigit():
        return int(message)
    said = message.decode(errors="replace").removeprefix("error: ") or "its launcher ended without a word"
    raise Unavailable(f"The jail cannot be made: {said}.", slug="jail_failed")


def _message(plan: Plan) -> dict[str, object]:
    kvm = (("kvm", *_device_number(Path("/dev/kvm")), 0o600),) if plan.kvm else ()
    return {
        "root": str(plan.directory),
        "files": [(str(file.source), file.name, file.writable) for file in plan.files],
        "devices": [*_DEVICES, *kvm],
        "uid": plan.uid,
        "gid": plan.gid,
        "limits": [
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, _MAX_FILES),
            (resource.RLIMIT_NPROC, _MAX_THREADS),
            (resource.RLIMIT_MEMLOCK, _MAX_LOCKED_BYTES),
        ],
        "oom_score_adj": _OOM_SCORE_ADJ,
        "first_unused_fd": max((*plan.fds, jail.CONTROL_FD)) + 1,
        "argv": list(plan.argv),
        "env": {},
    }


def _device_number(path: Path) -> tuple[int, int]:
    device = path.stat().st_rdev
    return os.major(device), os.minor(device)


def _check_readable(plan: Plan) -> None:
    """A file of root's that the VMM's uid may not read would only show as QEMU's "Permission denied"."""
    for file in plan.files:
        info = file.source.stat()
        if info.st_uid != plan.uid and not info.st_mode & stat.S_IROTH:
            raise Bug(f"{file.source} must be readable by everybody (mode 0644) for a VMM of uid {plan.uid}.")
