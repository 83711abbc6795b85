from __future__ import annotations

import asyncio

import pytest

from wrenn_sandbox.controlplane.http.auth import sandbox_in_path
from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.db import api_keys


def test_a_key_is_looked_up_once_in_a_while(api, monkeypatch) -> None:
    lookups: list[str] = []
    by_hash = api_keys.by_hash

    async def counted(connection, digest):
        lookups.append(digest)
        return await by_hash(connection, digest)

    monkeypatch.setattr(api_keys, "by_hash", counted)

    async def main() -> None:
        async with api() as (_, client):
            for _ in range(5):
                assert (await client.get("/v1/api-keys")).status_code == 200
            assert len(lookups) == 1
            for _ in range(2):  # what is not known is asked for each time: it may exist a moment later
                unknown = await client.get("/v1/api-keys", headers={"X-API-Key": "wrn_" + "0" * 32})
                assert unknown.status_code == 401
            assert len(lookups) == 3

    asyncio.run(main())


def test_a_path_that_names_no_sandbox_is_invalid() -> None:
    with pytest.raises(Invalid) as caught:
        asyncio.run(sandbox_in_path("x"))
    assert caught.value.slug == "invalid_id"
