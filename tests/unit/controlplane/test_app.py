from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wrenn_sandbox.controlplane.app import Front
from wrenn_sandbox.controlplane.proxy import Target


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("127.0.0.1:8080", None),
        ("8080-sb-x.localhost", Target("8080", "sb-x")),
        ("8080-sb-x.elsewhere.test", None),
    ],
)
def test_the_host_header_decides(world, host: str, target: Target | None) -> None:
    async def main() -> None:
        async with world() as w:
            proxied: list[Target] = []

            class Recorded:
                async def serve(self, asked: Target, *_: Any) -> None:
                    proxied.append(asked)

            front = Front(w.platform, Recorded())  # type: ignore[arg-type]
            sent: list[Any] = []

            async def receive() -> Any:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "GET", "path": "/health", "raw_path": b"/health", "query_string": b""}
            await front({**scope, "headers": [(b"host", host.encode())], "root_path": ""}, receive, send)
            assert proxied == ([target] if target else [])
            assert bool(sent) == (target is None)

    asyncio.run(main())
