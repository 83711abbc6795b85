"""One host agent from start to end: what it is made of, and the order in which that comes and goes.

::

    bind ▸ lock the data directory ▸ driver and network ▸ serve, write the ready file
         ▸ in the background: take over what a dead agent left running ▸ let creates in ▸ sweep the rest
         ▸ bake the default template
    SIGTERM ▸ let operations end ▸ stop serving ▸ exit 0: machines run on; without any, nothing stays

A killed agent leaves the same, so there is one way in for both. What brings a host to rest is the call ``Drain``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import uvicorn

from wrenn_sandbox.core.errors import Conflict, Invalid, WrennError
from wrenn_sandbox.disk import overlay
from wrenn_sandbox.disk.store import BuildStore
from wrenn_sandbox.hostagent import journal, wire
from wrenn_sandbox.hostagent.app import App
from wrenn_sandbox.hostagent.builds import Builds, improve_held_behind
from wrenn_sandbox.hostagent.capacity import Capacity, read_figures
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.moments import Moments
from wrenn_sandbox.hostagent.platforms import Platform, open_guest, open_platform
from wrenn_sandbox.hostagent.proxy import Proxy
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.service.service import HostAgentCalls, connect_application
from wrenn_sandbox.hostagent.settings import Settings
from wrenn_sandbox.hostagent.steps.bake import Kitchen
from wrenn_sandbox.hostagent.succession import leave, take_over
from wrenn_sandbox.hostagent.templates import Templates
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.rpc.head import BoundedHttp
from wrenn_sandbox.rpc.listener import listening, url_of
from wrenn_sandbox.rpc.relay import MAX_WEBSOCKET_MESSAGE_BYTES

log = structlog.get_logger()

T = TypeVar("T")

#: Pauses, snapshots and forks that are under way when we are to end.
UNDER_WAY_LIMIT_S = 60.0
#: Longer than any client keeps an idle connection, so that they, not we, drop it.
KEEP_ALIVE_S = 75
_BACKLOG = 1024
_GRACE_S = 3
_TAKE_OVER_AGAIN_S = 5.0
_CHORES_AGAIN_S = 60.0
#: A supervisor that dies is told to us once for each of our threads (PR_SET_PDEATHSIG, prctl(2)): that is one signal.
SAME_SIGNAL_S = 1.0


@dataclass(slots=True)
class Orders:
    """What the signals ask for: first to ``stop``; and again, to be ``gone`` at once."""

    stop: asyncio.Event
    gone: Callable[[], object]
    _same_until_s: float = 0.0

    def heard(self, now_s: float) -> None:
        """A signal came at ``now_s``, in the seconds of the loop's clock."""
        if not self.stop.is_set():
            self._same_until_s = now_s + SAME_SIGNAL_S
            self.stop.set()
        elif now_s > self._same_until_s:
            self.gone()


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Another one cuts the way out short, and spares the machines that run, too."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        orders = Orders(asyncio.Event(), lambda: None)
        serving = group.create_task(_serve(settings, orders))
        orders.gone = serving.cancel
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: orders.heard(loop.time()))


async def _serve(settings: Settings, orders: Orders) -> None:
    token = read_token(settings.token_file)
    with sole_user_of(settings.data_dir), listening(*settings.address) as listener:
        async with open_platform(settings) as platform, asyncio.TaskGroup() as group:
            orders.gone = partial(os._exit, 1)  # from here on a cancel would end machines
            parts = assemble(settings, platform, token, group)
            server = _Server(parts.app)
            serving = group.create_task(_or_exit(server.serve(sockets=[listener])))
            chores = [group.create_task(_or_exit(work)) for work in (_chores(platform, parts), parts.builds.work())]
            ending = group.create_task(orders.stop.wait())
            with ready_file(settings, listener, platform):
                log.info("host agent serves", driver=wire.driver_name(platform.driver.capabilities))
                await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            for chore in chores:
                chore.cancel()
            await _end(parts, server, serving)
    log.info("host agent ended")


async def _end(parts: Parts, server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    """Let what is under way end. Machines that run are left to the next agent; without any, nothing is left."""
    parts.registry.refuse()
    await leave(parts.registry, UNDER_WAY_LIMIT_S)
    await parts.builds.collect()
    await parts.templates.close()
    parts.builds.store.close()
    server.should_exit = True
    if any(sandbox.is_living for sandbox in parts.registry.all()):
        await asyncio.wait({serving}, timeout=_GRACE_S)
        log.info("host agent ended; its machines run on")
        # Leaving any context would end what it holds. To the next agent this is like a kill, but for what was finished.
        os._exit(0)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the agent is made of."""

    registry: Registry
    templates: Templates
    builds: Builds
    app: App


def assemble(settings: Settings, platform: Platform, token: str, group: asyncio.TaskGroup) -> Parts:
    """Put the parts together; their tasks live in ``group``."""
    run_root = settings.data_dir / "run"
    capacity = Capacity(settings.rules, partial(read_figures, settings.data_dir))
    catalog = Catalog(settings.images_dir)
    driver, network = platform.driver, platform.network
    kitchen = Kitchen(driver, network, catalog, capacity, overlay.create, open_guest, run_root)
    builds = Builds(BuildStore(settings.data_dir, catalog), driver)
    templates = Templates(kitchen, group, lambda: builds.store.needed_bases(builds.claims().builds))
    starts = asyncio.Semaphore(settings.parallel_starts or max(2, os.cpu_count() or 1))
    host = Host(driver, network, catalog, capacity, templates, builds, overlay.create, open_guest, run_root, starts)
    registry = Registry(host, group)
    calls = HostAgentCalls(registry, Moments(registry, group), templates, capacity, driver.capabilities)
    return Parts(
        registry, templates, builds, App(token, connect_application(calls), Proxy(registry), registry.complete)
    )


async def _or_exit(work: Awaitable[None]) -> None:
    """Do what the agent cannot be without. Its failure ends the agent at once, as a kill does: in this group are the
    tasks of sandboxes, too, which an error that leaves it would cancel, and their machines with them.
    """
    try:
        await work
    except Exception:
        log.exception("the host agent ends; its machines run on")
        os._exit(1)


async def _chores(platform: Platform, parts: Parts) -> None:
    """Take over from a dead agent, then let creates in, clear up behind it and keep the templates."""
    left = await _taken_over(parts.registry)
    parts.registry.open()
    machines = [directory for directory in left if await _survived("clear", journal.clear(directory)) is None]
    networks = await _survived("sweep", platform.network.sweep())
    if machines or (isinstance(networks, int) and networks):
        log.warning("swept what a dead agent left", machines=len(machines), networks=networks)
    await _survived("improve", improve_held_behind(parts.builds))
    while True:
        await _survived("templates", parts.templates.keep())
        await asyncio.sleep(_CHORES_AGAIN_S)


async def _survived(chore: str, work: Awaitable[T]) -> T | Exception:
    """Its result, or why there is none: sandboxes come and go without it."""
    try:
        return await work
    except Exception as error:
        log.error("chore failed", chore=chore, error=str(error), exc_info=not isinstance(error, WrennError))
        return error


async def _taken_over(registry: Registry) -> list[Path]:
    """Until that is possible nothing new is let in: what is there might be taken for rubbish."""
    while True:
        try:
            return await take_over(registry)
        except Exception as error:
            known = isinstance(error, (WrennError, OSError))
            log.error("cannot take over from another agent", error=str(error), exc_info=not known)
            await asyncio.sleep(_TAKE_OVER_AGAIN_S)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: ours decide when it ends."""

    def __init__(self, app: App) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHttp,
                ws="websockets-sansio",
                ws_max_size=MAX_WEBSOCKET_MESSAGE_BYTES,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACE_S,
                backlog=_BACKLOG,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def read_token(path: Path) -> str:
    """The bearer token; raises Invalid (``invalid_token_file``)."""
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise Invalid(f"--token-file {path} cannot be read: {error.strerror}.", slug="invalid_token_file") from error
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise Invalid(
            f"--token-file {path} must hold at least 16 printable ASCII characters.", slug="invalid_token_file"
        )
    return token


@contextmanager
def sole_user_of(data_dir: Path) -> Iterator[None]:
    """Hold the data directory; raises Conflict (``data_dir_in_use``) when another agent does."""
    (data_dir / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(data_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"Another host agent uses {data_dir}: stop it, or give --data-dir.", slug="data_dir_in_use"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def ready_file(settings: Settings, listener: socket.socket, platform: Platform) -> Iterator[None]:
    """Say where we listen, for as long as we do."""
    if settings.ready_file is None:
        yield
        return
    content = {"url": url_of(listener), "driver": wire.driver_name(platform.driver.capabilities), "pid": os.getpid()}
    temporary = settings.ready_file.with_name(settings.ready_file.name + ".new")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(settings.ready_file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            settings.ready_file.unlink()
