"""The control plane process: ``python -m wrenn_sandbox.controlplane [--flags] | openapi``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import uvicorn
import uvloop

from wrenn_sandbox.controlplane.agent import open_agent
from wrenn_sandbox.controlplane.app import Front, api
from wrenn_sandbox.controlplane.http.docs import as_text, describe
from wrenn_sandbox.controlplane.platform import Contact, Platform
from wrenn_sandbox.controlplane.proxy import Proxy
from wrenn_sandbox.controlplane.reconciler import Reconciler
from wrenn_sandbox.controlplane.settings import Settings
from wrenn_sandbox.controlplane.settling import settling
from wrenn_sandbox.controlplane.usecases.set_up import set_up
from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.db.engine import open_database
from wrenn_sandbox.observe.logs import configure
from wrenn_sandbox.rpc.head import BoundedHttp
from wrenn_sandbox.rpc.listener import listening, url_of
from wrenn_sandbox.rpc.relay import MAX_WEBSOCKET_MESSAGE_BYTES, relay_session

#: Requests under way may take this long to end after SIGTERM.
DRAIN_S = 5


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; or print the OpenAPI document."""
    if arguments[:1] == ["openapi"]:
        sys.stdout.write(as_text(describe(api())))
        return 0
    try:
        settings = Settings.from_flags(arguments)
        configure("controlplane", level=settings.log_level)
        # It talks to nothing but its agents and its database; a proxy meant for browsers must not get in between.
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            os.environ.pop(name, None)
            os.environ.pop(name.upper(), None)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except WrennError as error:
        print(f"controlplane: {error.message} [{error.slug}]", file=sys.stderr)  # noqa: T201
        return 2
    return 0


async def serve(settings: Settings) -> None:
    """One control plane from its first connection to its last."""
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listening(*settings.address))
        database = await stack.enter_async_context(open_database(settings.database_url))
        host_id = await set_up(database, settings.agent_url, settings.bootstrap_key_file)
        agent = await stack.enter_async_context(open_agent(settings.agent_url, settings.agent_token()))
        session = await stack.enter_async_context(relay_session())
        begun = await stack.enter_async_context(settling())
        platform = Platform(database, agent, host_id, begun, Contact(time.monotonic()), settings.domain)
        server = _Server(_config(Front(platform, Proxy(platform, session))))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        async with asyncio.TaskGroup() as group:
            reconciling = group.create_task(Reconciler(platform).run())
            announcing = group.create_task(_announce(server, listener, settings))
            await server.serve(sockets=[listener])
            reconciling.cancel()
            announcing.cancel()


class _Server(uvicorn.Server):
    """uvicorn, with signals handled by us: it would raise them again after an orderly end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """End in good order; at the second call at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _config(app: Front) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="websockets-sansio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_S,
        ws_max_size=MAX_WEBSOCKET_MESSAGE_BYTES,  # what programs behind the proxy may get; the API takes less
        ws_ping_interval=20,
        ws_ping_timeout=20,
        ws_per_message_deflate=False,
    )


async def _announce(server: _Server, listener: socket.socket, settings: Settings) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    if settings.ready_file is None:
        return
    temporary = settings.ready_file.with_name(settings.ready_file.name + ".new")
    temporary.write_text(json.dumps({"url": url_of(listener), "pid": os.getpid()}) + "\n")
    temporary.replace(settings.ready_file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
