"""uvicorn, made quiet: an idle sandbox should cost next to nothing.

uvicorn's own main loop wakes ten times a second to look at a flag; under an emulated CPU that is most of what an idle
guest would do. Here a signal wakes the loop instead.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn

from wrenn_sandbox.envd.app import Application

#: Longer than any client's ping (50 s) and proxy's idle connection.
KEEP_ALIVE_S = 640
#: Seconds that open streams get at the end; what they show lives on in nobody.
SHUTDOWN_S = 1


class _CutStreams(logging.Filter):
    """Keeps quiet about the requests that uvicorn cancels at the end: that is how they end."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class Server(uvicorn.Server):
    """Serves one application until SIGTERM or SIGINT."""

    def __init__(self, application: Application, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                host=host,
                port=port,
                loop="asyncio",
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_S,
            )
        )
        logging.getLogger("uvicorn.error").addFilter(_CutStreams())
        self._stop = asyncio.Event()
        self._listening = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def port(self) -> int:
        """The port it listens on; one the kernel chose when 0 was asked for."""
        number: int = self.servers[0].sockets[0].getsockname()[1]
        return number

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        finally:
            self._listening.set()

    async def listening(self) -> None:
        """Return when it listens, or cannot."""
        await self._listening.wait()

    async def main_loop(self) -> None:
        """Wait for a signal."""
        if not self.should_exit:
            await self._stop.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called between any two instructions of the main thread, so the loop has to be woken."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
