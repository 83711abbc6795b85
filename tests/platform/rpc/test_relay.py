"""A hop of the relay between a real client and a real upstream, over loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
import uvicorn
from aiohttp import web

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.rpc import relay

pytestmark = pytest.mark.platform


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


class Hop:
    """The relay as an ASGI app; ``errors`` holds what it raised before an answer had begun."""

    def __init__(self, session: aiohttp.ClientSession, upstream: str) -> None:
        self.session, self.upstream = session, upstream
        self.errors: list[Exception] = []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return
        url = self.upstream + scope["raw_path"].decode()
        if scope["query_string"]:
            url += "?" + scope["query_string"].decode()
        hop = relay.relay_http if scope["type"] == "http" else relay.relay_websocket
        try:
            await hop(
                scope, receive, send, self.session, url, extra_headers=[("X-Hop", "1")], headers_drop={"x-secret"}
            )
        except Unavailable as error:
            self.errors.append(error)
            await relay.refuse(scope, send, 502, error.slug.encode(), "text/plain")


@contextlib.asynccontextmanager
async def upstream_app(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def hop_to(upstream: str) -> AsyncIterator[tuple[str, Hop]]:
    listener = socket.create_server(("127.0.0.1", 0))
    async with relay.relay_session() as session:
        hop = Hop(session, upstream)
        config = uvicorn.Config(hop, log_level="error", lifespan="off", ws="websockets-sansio")
        server = uvicorn.Server(config)
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}", hop
            finally:
                server.should_exit = True
    listener.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_method_path_headers_and_body_pass_unchanged() -> None:
    async def echo(request: web.Request) -> web.Response:
        body = await request.read()
        seen = {k.lower(): v for k, v in request.headers.items()}
        assert "x-secret" not in seen and seen["x-hop"] == "1" and seen["host"] == "example.test"
        answer = web.Response(body=body, status=207, headers={"X-Seen": f"{request.method} {request.raw_path}"})
        answer.headers.add("Set-Cookie", "a=1")
        answer.headers.add("Set-Cookie", "b=2")
        return answer

    async def work() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", echo)
        async with upstream_app(app) as upstream, hop_to(upstream) as (url, _), aiohttp.ClientSession() as client:
            headers = {"Host": "example.test", "X-Secret": "no"}
            raw = aiohttp.client.URL(url + "/a%2Fb/%20c?q=%26&r=1", encoded=True)
            async with client.request("PATCH", raw, headers=headers, data=b"hello") as answer:
                assert (answer.status, await answer.read()) == (207, b"hello")
                assert answer.headers["X-Seen"] == "PATCH /a%2Fb/%20c?q=%26&r=1"
                assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]

    run(work)


def test_bodies_stream_both_ways_with_constant_memory() -> None:
    size, chunk = 256 * 1024 * 1024, bytes(64 * 1024)

    async def sink(request: web.Request) -> web.Response:
        total = 0
        async for piece in request.content.iter_any():
            total += len(piece)
        return web.Response(text=str(total))

    async def source(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(size // len(chunk)):
            await answer.write(chunk)
        return answer

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // len(chunk)):
            yield chunk

    async def work() -> None:
        app = web.Application()
        app.router.add_post("/", sink)
        app.router.add_get("/", source)
        async with upstream_app(app) as upstream, hop_to(upstream) as (url, _), aiohttp.ClientSession() as client:
            before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with client.post(url, data=body()) as answer:
                assert await answer.text() == str(size)
            total = 0
            async with client.get(url) as answer:
                async for piece in answer.content.iter_any():
                    total += len(piece)
            assert total == size
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024

    run(work)


def test_first_byte_passes_before_the_last_was_made() -> None:
    async def work() -> None:
        go_on = asyncio.Event()

        async def slow(request: web.Request) -> web.StreamResponse:
            answer = web.StreamResponse()
            await answer.prepare(request)
            await answer.write(b"first")
            await go_on.wait()
            await answer.write(b"last")
            return answer

        app = web.Application()
        app.router.add_get("/", slow)
        async with (
            upstream_app(app) as upstream,
            hop_to(upstream) as (url, _),
            aiohttp.ClientSession() as client,
            client.get(url) as answer,
        ):
            assert await answer.content.readany() == b"first"
            go_on.set()
            assert await answer.content.read() == b"last"

    run(work)


def test_client_that_leaves_ends_the_upstream_request() -> None:
    async def work() -> None:
        arrived, left = asyncio.Event(), asyncio.Event()

        async def hang(request: web.Request) -> web.Response:
            arrived.set()
            try:
                await asyncio.sleep(3600)
            finally:
                left.set()
            return web.Response()

        app = web.Application(handler_args={"handler_cancellation": True})
        app.router.add_get("/", hang)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        upstream = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with hop_to(upstream) as (url, hop):
            async with aiohttp.ClientSession() as client:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        async with asyncio.TaskGroup() as group:
                            request = group.create_task(client.get(url))
                            await arrived.wait()
                            request.cancel()
            await left.wait()
            assert hop.errors == []
        await runner.cleanup()

    run(work)


def test_closed_port_and_broken_answer_are_typed() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def work() -> None:
        async with hop_to(f"http://127.0.0.1:{free_port()}") as (url, hop), aiohttp.ClientSession() as client:
            async with client.get(url) as answer:
                assert (answer.status, await answer.text()) == (502, "port_not_open")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(url)
            assert refused.value.status == 502
            assert [type(e) for e in hop.errors] == [relay.DialFailed, relay.DialFailed]
        server = await asyncio.start_server(slam, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            async with (
                hop_to(f"http://127.0.0.1:{port}") as (url, _),
                aiohttp.ClientSession() as client,
                client.post(url, data=b"x") as answer,
            ):
                assert (answer.status, await answer.text()) == (502, "upstream_broken")

    run(work)


def test_answer_cut_in_the_middle_is_cut_for_the_client_too() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(half, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            async with hop_to(f"http://127.0.0.1:{port}") as (url, _), aiohttp.ClientSession() as client:
                with pytest.raises(aiohttp.ClientPayloadError):
                    async with client.get(url) as answer:
                        await answer.read()

    run(work)


def test_websocket_passes_text_bytes_subprotocol_and_close_codes() -> None:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("chat",))
        await socket.prepare(request)
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT and message.data == "bye":
                await socket.close(code=4001)
            elif message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    async def work() -> None:
        app = web.Application()
        app.router.add_get("/ws", echo)
        async with upstream_app(app) as upstream, hop_to(upstream) as (url, _), aiohttp.ClientSession() as client:
            async with client.ws_connect(url + "/ws", protocols=("chat", "other")) as socket:
                assert socket.protocol == "chat"
                await socket.send_str("grüß")
                assert await socket.receive_str() == "grüß"
                await socket.send_bytes(b"\x00\xff" * 100_000)
                assert await socket.receive_bytes() == b"\x00\xff" * 100_000
                await socket.send_str("bye")
                await socket.receive()
                assert socket.close_code == 4001
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await client.ws_connect(url + "/absent")

    run(work)
