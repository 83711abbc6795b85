"""The child processes of ``wrenn up``: started in their own session, logged to a file, restarted, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wrenn_sandbox.core.errors import Bug

START_LIMIT_S = 30.0
#: A child that ends this often within the window is not started again.
RESTART_LIMIT, RESTART_WINDOW_S = 5, 60.0
_LOG_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Child:
    """One process of the platform. ``stop_limit_s`` bounds its clean-up after SIGTERM, before SIGKILL.

    What is secret goes into ``environment``: arguments can be read by every user of the machine (proc_pid_cmdline(5)).
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    ready_file: Path
    log_file: Path
    stop_limit_s: float
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[Process]:
    """The child, ready to serve; stopped and reaped when the context is left.

    Raises Bug (``start_failed``) with the end of its log when it does not become ready.
    """
    child.ready_file.unlink(missing_ok=True)
    process = await _spawn(child)
    try:
        await _until_ready(child, process)
        yield process
    finally:
        await asyncio.shield(_stop(child, process))
        child.ready_file.unlink(missing_ok=True)


async def keep_running(child: Child, first: Process, report: Callable[[str], None]) -> None:
    """Start ``child`` again whenever it ends by itself; raises Bug when it ends too often."""
    process = first
    ends: list[float] = []
    loop = asyncio.get_running_loop()
    while True:
        code = await process.wait()
        ends = [t for t in ends if t > loop.time() - RESTART_WINDOW_S] + [loop.time()]
        if len(ends) >= RESTART_LIMIT:
            raise Bug(
                f"{child.name} ended {len(ends)} times in a minute; its log: {child.log_file}", slug="start_failed"
            )
        report(f"{child.name} ended with code {code}: starting it again")
        await asyncio.sleep(min(0.2 * 2 ** len(ends), 5.0))
        async with contextlib.AsyncExitStack() as stack:
            process = await stack.enter_async_context(running(child))
            await process.wait()


def ready_info(child: Child) -> dict[str, object]:
    """What a ready child says of itself."""
    data = json.loads(child.ready_file.read_text())
    return data if isinstance(data, dict) else {}


async def _spawn(child: Child) -> Process:
    child.log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if child.log_file.exists() and child.log_file.stat().st_size > _LOG_LIMIT_BYTES:
        child.log_file.replace(child.log_file.with_suffix(".log.1"))
    with os.fdopen(os.open(child.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            child.module,
            *child.arguments,
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **child.environment},
            start_new_session=True,  # a Ctrl-C at the terminal is the supervisor's to handle
        )


async def _until_ready(child: Child, process: Process) -> None:
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while not child.ready_file.exists():
                if process.returncode is not None:
                    break
                await asyncio.sleep(0.02)
            else:
                return
    except TimeoutError:
        pass
    raise Bug(f"{child.name} did not start.\n{_tail(child.log_file)}\nIts log: {child.log_file}", slug="start_failed")


async def _stop(child: Child, process: Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(child.stop_limit_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _tail(path: Path, lines: int = 12) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return ""
