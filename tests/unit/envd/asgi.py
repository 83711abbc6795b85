"""An ASGI application called without a server, for unit tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from wrenn_sandbox.envd.http import Asgi, Event, Header, Scope


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> object:
        return json.loads(self.body)


async def call(
    app: Asgi,
    method: str,
    target: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Sequence[Header] = (),
    *,
    leaves: bool = False,
) -> Answer:
    """One request; ``leaves`` makes the client go away instead of ending its body."""
    path, _, query = target.partition("?")
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": list(headers),
    }
    pieces = [body] if isinstance(body, bytes) else list(body)
    events: list[Event] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    events.append({"type": "http.disconnect"} if leaves else {"type": "http.request", "body": b"", "more_body": False})
    answer = Answer()

    async def receive() -> Event:
        if events:
            return events.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(event: Event) -> None:
        if event["type"] == "http.response.start":
            answer.status = event["status"]
            answer.headers = {k.decode(): v.decode("latin-1") for k, v in event["headers"]}
        else:
            answer.body += event["body"]

    await app(scope, receive, send)
    return answer
