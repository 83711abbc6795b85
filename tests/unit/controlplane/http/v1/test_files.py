from __future__ import annotations

import asyncio

from tests.unit.controlplane.conftest import running
from wrenn_sandbox.core.errors import NotFound
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


def test_a_file_goes_in_and_comes_out(api) -> None:
    async def main() -> None:
        async with api() as (world, client):
            world.agent.answers["CreateSandbox"] = running
            base = f"/v1/sandboxes/{(await client.post('/v1/sandboxes', json={})).json()['id']}/files"
            written = await client.put(base, params={"path": "/a", "user": "u"}, content=b"abc")
            assert written.status_code == 204
            (messages,) = world.agent.requests("WriteFileStream")
            assert (messages[0].content.value.path, messages[0].content.value.user) == ("/a", "u")
            assert b"".join(m.content.value for m in messages[1:]) == b"abc"
            world.agent.answers["ReadFileStream"] = [pb.ReadFileStreamResponse(chunk=b"x")] * 3
            for answer in (
                await client.get(base, params={"path": "/a"}),
                await client.post(f"{base}/read", json={"path": "/a"}),
                await client.post(f"{base}/stream/read", json={"path": "/a"}),
            ):
                assert (answer.status_code, answer.content) == (200, b"xxx")
            world.agent.answers["ReadFileStream"] = [NotFound("no", slug="file_not_found")]
            assert (await client.get(base, params={"path": "/a"})).status_code == 404

    asyncio.run(main())
