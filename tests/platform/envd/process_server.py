"""Only the process service, served as envd serves it. Run as a program; prints its address, ends on SIGTERM.

Arguments are ``name=value`` for constants of envd.process and envd.processes that a test cannot wait for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from wrenn_sandbox.envd import process, processes
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.process_service import ProcessService
from wrenn_sandbox.envd.processes import ProcessTable
from wrenn_sandbox.rpc.gen.envd.process_connect import ProcessASGIApplication


class Server(uvicorn.Server):
    """uvicorn's own raises the signal again when it has served, which would end the program before its contexts."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.handle_exit, signal.SIGTERM, None)
        yield


async def serve() -> None:
    context = GuestContext(is_guest=False, envs={"FROM_INIT": "yes", "SHADOWED": "init"})
    # The protocol must be named: asyncio sets TCP_NODELAY only on sockets that say they are TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        async with ProcessTable(context) as table:
            app = ProcessASGIApplication(ProcessService(context, table))
            config = uvicorn.Config(
                app, loop=os.environ.get("LOOP", "asyncio"), log_level="warning", timeout_graceful_shutdown=1, ws="none"
            )
            print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
            await Server(config).serve([listener])


if __name__ == "__main__":
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        for module in (process, processes):
            if hasattr(module, name):
                setattr(module, name, float(value))
    asyncio.run(serve())
