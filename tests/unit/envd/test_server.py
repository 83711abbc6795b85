from __future__ import annotations

import asyncio
import signal

from wrenn_sandbox.envd.http import Receive, Scope, Send
from wrenn_sandbox.envd.server import KEEP_ALIVE_S, Server


async def application(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("not called")


def test_it_serves_plain_http_quietly() -> None:
    config = Server(application, "127.0.0.1", 0).config  # type: ignore[arg-type]
    assert (config.http, config.ws, config.loop) == ("httptools", "none", "asyncio")
    assert not (config.access_log or config.date_header or config.server_header or config.proxy_headers)
    assert config.timeout_keep_alive == KEEP_ALIVE_S > 50


def test_a_signal_ends_the_wait() -> None:
    async def main() -> None:
        server = Server(application, "127.0.0.1", 0)  # type: ignore[arg-type]
        server._loop = asyncio.get_running_loop()
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            waiting = group.create_task(server.main_loop())
            await asyncio.sleep(0)
            assert not waiting.done()
            server.handle_exit(signal.SIGTERM, None)
        await server.main_loop()

    asyncio.run(main())


def test_a_signal_before_it_listens_counts_too() -> None:
    server = Server(application, "127.0.0.1", 0)  # type: ignore[arg-type]
    server.handle_exit(signal.SIGTERM, None)
    asyncio.run(server.main_loop())
