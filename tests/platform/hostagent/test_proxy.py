from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest

from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb
from wrenn_sandbox.rpc.relay import FORWARDED_AUTHORIZATION

pytestmark = pytest.mark.platform

SERVER = """
import sys
from aiohttp import web, WSMsgType
async def echo(request):
    if request.headers.get("Upgrade"):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str("echo " + message.data)
        return ws
    seen = {k.lower(): v for k, v in request.headers.items()}
    return web.json_response({"path": request.raw_path, "auth": seen.get("authorization"), "host": seen["host"],
                              "body": (await request.read()).decode(), "names": sorted(seen)})
app = web.Application()
app.router.add_route("*", "/{tail:.*}", echo)
web.run_app(app, host=sys.argv[1], port=int(sys.argv[2]), print=None)
"""


async def serve(client, sandbox, port: int) -> None:
    start = pb.StartBackgroundRequest(
        sandbox_id=sandbox.sandbox_id, cmd=sys.executable, args=["-c", SERVER, sandbox.host_ip, str(port)], user="root"
    )
    await client.channel.unary("StartBackground", start, pb.StartBackgroundResponse)


def test_http_and_websockets_reach_a_program(run, agent) -> None:
    async def work(client) -> None:
        sandbox = await client.create()
        await serve(client, sandbox, 8123)
        url = f"{agent.url}/proxy/{sandbox.sandbox_id}/8123"
        async with asyncio.timeout(30):
            while (await client.session.get(url + "/")).status == 502:
                pass  # the dial itself is repeated
        headers = {FORWARDED_AUTHORIZATION: "Basic own", "host": "8123-x.example.test"}
        raw = aiohttp.client.URL(url + "/a%2Fb?c=%20d", encoded=True)
        async with client.session.put(raw, data=b"body", headers=headers) as answer:
            seen = await answer.json()
        assert (seen["path"], seen["auth"], seen["body"]) == ("/a%2Fb?c=%20d", "Basic own", "body")
        assert seen["host"] == "8123-x.example.test" and FORWARDED_AUTHORIZATION not in seen["names"]
        async with client.session.get(url) as answer:
            assert (await answer.json())["auth"] is None, "the agent's own token stays outside"
        async with client.session.ws_connect(url + "/ws") as socket:
            await socket.send_str("hi")
            assert await socket.receive_str() == "echo hi"
            await client.destroy(sandbox.sandbox_id)
            assert (await socket.receive()).type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}

    run(work)


def test_what_is_not_reachable(run, agent) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            expected = {
                f"{sb}/8124/": (502, "port_not_open"),
                f"{sb}/49983/files": (403, "port_reserved"),
                f"{sb}/70000/": (400, "invalid_port"),
                f"sb-{uuid4()}/80/": (502, "sandbox_not_found"),
                "sb-nope/80/": (400, "invalid_id"),
            }
            for path, (status, slug) in expected.items():
                async with client.session.get(f"{agent.url}/proxy/{path}") as answer:
                    body = await answer.json()
                    assert (answer.status, body["error_code"], body["code"]) == (status, slug, status)
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await client.session.ws_connect(f"{agent.url}/proxy/{path}")
                assert refused.value.status == status

    run(work)


def test_proxied_traffic_counts_as_use(run, agent, tmp_path: Path) -> None:
    async def work(client) -> None:
        sandbox = await client.create(lifetime=pb.Lifetime(idle_timeout_s=2))
        await serve(client, sandbox, 8125)
        url = f"{agent.url}/proxy/{sandbox.sandbox_id}/8125/"
        async with asyncio.timeout(30):
            while (await client.session.get(url)).status == 502:
                pass
        async with client.session.ws_connect(url) as socket:
            await asyncio.sleep(3)
            await socket.send_str("still")
            assert await socket.receive_str() == "echo still"
        info = await client.ended(sandbox.sandbox_id)
        assert info.reason_slug == "idle_timeout"

    run(work)
