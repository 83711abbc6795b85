"""The child processes of ``wrenn up``: started in their own session, logged to a file, restarted, and never left
behind, not even by a supervisor that is killed.

::

    kept ── starting ──▶ ready ──▶ ended by itself ──▶ a pause ──▶ starting, at the same address
                │                                        │
                ▼ the first time                         ▼ too often
              error                                    error

A child says that it is ready by writing its ready file; one that ends before says why in the last line of its log,
``name: sentence [slug]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from wrenn_sandbox.core.errors import Bug, Unavailable, WrennError

START_LIMIT_S = 30.0
#: A child that ends, or does not start, this often within the window is not started again.
RESTART_LIMIT, RESTART_WINDOW_S = 5, 300.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_LOG_LIMIT_BYTES = 16 << 20
_LAST_WORDS = re.compile(r"\w+: (?P<sentence>.+) \[(?P<slug>[a-z_]+)\]")

Info = dict[str, object]


@dataclass(frozen=True, slots=True)
class Child:
    """One process of the platform. ``stop_limit_s`` bounds its clean-up after SIGTERM, before SIGKILL.

    ``listen`` is HOST:PORT; port 0 is any free one at the first start, and the same one at every later start.
    What is secret goes into ``environment``: arguments can be read by every user of the machine (proc_pid_cmdline(5)).
    """

    name: str
    module: str
    listen: str
    arguments: tuple[str, ...]
    ready_file: Path
    log_file: Path
    stop_limit_s: float
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@asynccontextmanager
async def kept(child: Child, report: Callable[[str], None]) -> AsyncIterator[Info]:
    """The child, ready to serve, started again whenever it ends; dead and reaped when the context is left.

    Yields what the ready child said of itself. Raises, inside an exception group, what kept it from its first start
    (its own error, or Bug ``start_failed`` with the end of its log), or later Bug when it ends too often.
    """
    first: asyncio.Future[Info] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(_keep(child, first, report))
        yield await first
        keeping.cancel()


async def _keep(child: Child, first: asyncio.Future[Info], report: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    ends: list[float] = []
    while True:
        try:
            async with running(child) as (process, info):
                child = replace(child, listen=urlsplit(str(info["url"])).netloc)
                if not first.done():
                    first.set_result(info)
                how = f"ended with code {await process.wait()}"
        except WrennError as error:
            if not first.done():
                raise
            how = error.message
        ends = [moment for moment in ends if moment > loop.time() - RESTART_WINDOW_S] + [loop.time()]
        if len(ends) >= RESTART_LIMIT:
            raise Bug(f"{child.name} {how}, the {len(ends)}th time; its log: {child.log_file}", slug="start_failed")
        report(f"{child.name} {how}: starting it again")
        await asyncio.sleep(min(_FIRST_PAUSE_S * 2 ** len(ends), _LONGEST_PAUSE_S))


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[tuple[Process, Info]]:
    """One life of the child, from ready to dead and reaped; errors as for ``kept``, without a group."""
    child.ready_file.unlink(missing_ok=True)
    log_start = _prepare_log(child.log_file)
    process = await _spawn(child)
    try:
        await _until_ready(child, process, log_start)
        yield process, json.loads(child.ready_file.read_text())
    finally:
        try:
            await _stop(child, process)
        finally:
            child.ready_file.unlink(missing_ok=True)


def _prepare_log(path: Path) -> int:
    """Make room; returns where the coming life's part of the log begins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    size = path.stat().st_size if path.exists() else 0
    if size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
        return 0
    return size


async def _spawn(child: Child) -> Process:
    with os.fdopen(os.open(child.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as log:
        return await asyncio.create_subprocess_exec(
            # A supervisor that is killed can stop nobody: the kernel tells the child (PR_SET_PDEATHSIG, prctl(2)).
            *("setpriv", "--pdeathsig", "TERM", "--"),
            *(sys.executable, "-m", child.module, "--listen", child.listen, "--ready-file", str(child.ready_file)),
            *child.arguments,
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C at the terminal is the supervisor's to handle
            env={**os.environ, **child.environment},
        )


async def _until_ready(child: Child, process: Process, log_start: int) -> None:
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while not child.ready_file.exists():
                if process.returncode is not None:
                    raise _not_started(child, log_start)
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise _not_started(child, log_start) from error


def _not_started(child: Child, log_start: int) -> WrennError:
    said = _tail(child.log_file, log_start)
    if last := _LAST_WORDS.fullmatch(said.rpartition("\n")[2]):
        return Unavailable(f"The {child.name} did not start: {last['sentence']}", slug=last["slug"])
    return Bug(f"The {child.name} did not start.\n{said}\nIts log: {child.log_file}", slug="start_failed")


async def _stop(child: Child, process: Process) -> None:
    """SIGTERM, time to clean up, SIGKILL. A cancel meanwhile is held back: it may not leave the child behind."""
    cancel: asyncio.CancelledError | None = None
    deadline = asyncio.get_running_loop().time() + child.stop_limit_s
    if process.returncode is None:
        process.terminate()
    while process.returncode is None:
        try:
            async with asyncio.timeout_at(deadline):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            deadline += child.stop_limit_s
        except asyncio.CancelledError as error:
            cancel = error
    if cancel is not None:
        raise cancel


def _tail(path: Path, start: int, lines: int = 12) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(start)
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    return ""
