from __future__ import annotations

import asyncio

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


def test_the_host_and_its_templates_are_shown(api) -> None:
    async def main() -> None:
        async with api() as (world, client):
            template = pb.BaseTemplate(name="base", vcpus=1, memory_mb=512, status="preparing", detail="booting")
            world.agent.answers["GetHost"] = pb.GetHostResponse(driver="qemu/tcg", templates=[template])
            host = (await client.get("/v1/hosts/current")).json()
            assert host["driver"] == "qemu/tcg" and host["templates"][0]["detail"] == "booting"
            world.agent.answers["GetHost"] = Unavailable("silent", retry_after_s=2)
            silent = await client.get("/v1/hosts/current")
            assert silent.status_code == 503 and silent.headers["retry-after"] == "2"
            assert (await client.get("/health")).json()["host"] == "unknown"

    asyncio.run(main())
