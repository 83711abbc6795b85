from __future__ import annotations

import asyncio

import pytest

from wrenn_sandbox.hostagent.platforms import open_guest, open_platform
from wrenn_sandbox.hostagent.settings import parse


def test_the_fake_needs_nothing_but_a_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRENN_EXEC_SHIM", "/bin/true")

    async def work() -> None:
        async with open_platform(parse(["--token-file", "/t", "--driver", "fake"])) as platform:
            assert platform.driver.capabilities.driver == "fake"
            assert await platform.network.sweep() == 0

    asyncio.run(work())


def test_a_guest_has_connections_of_its_own_and_no_cookies() -> None:
    async def work() -> None:
        async with open_guest("10.0.0.1", "tok") as one, open_guest("10.0.0.1", "tok") as other:
            assert one._session.connector is not other._session.connector
            assert not one._session.trust_env and not one._session.auto_decompress
        assert one._session.closed

    asyncio.run(work())
