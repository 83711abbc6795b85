"""Readers of a session that is closed, over a real socket."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from wrenn_sandbox.rpc.session import breaking_session

pytestmark = pytest.mark.platform


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", b""])
def test_a_reader_is_told_that_the_session_was_closed(sent: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        asked.set()
        await reader.read()
        writer.close()

    async def read(session: aiohttp.ClientSession, url: str) -> None:
        with pytest.raises(aiohttp.ClientError):
            async with session.get(url) as answer:
                async for chunk in answer.content.iter_any():
                    assert chunk == b"x"
                    began.set()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server, asyncio.timeout(20), asyncio.TaskGroup() as group, breaking_session() as session:
            group.create_task(read(session, f"http://{host}:{port}/"))
            await (began if sent else asked).wait()

    asked, began = asyncio.Event(), asyncio.Event()
    asyncio.run(main())


def test_an_answer_that_was_read_stays_read() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server, asyncio.timeout(20):
            async with breaking_session() as session:
                answer = await session.get(f"http://{host}:{port}/")
                await answer.read()
            assert await answer.text() == "ok"

    asyncio.run(main())
