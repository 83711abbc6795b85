from __future__ import annotations

import asyncio

from wrenn_sandbox.controlplane.http.v1.keys import UNNAMED


def test_a_key_without_a_name_gets_one(api) -> None:
    async def main() -> None:
        async with api() as (_, client):
            for body in ({}, {"name": "  "}):
                made = await client.post("/v1/api-keys", json=body)
                assert made.status_code == 201 and made.json()["name"] == UNNAMED
                assert made.json()["key"][:10] == made.json()["key_prefix"]
            assert all("key" not in item for item in (await client.get("/v1/api-keys")).json())

    asyncio.run(main())
