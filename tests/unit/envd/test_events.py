"""Events as the JSON that clients see."""

from __future__ import annotations

import json

import pytest
from protobuf import Message

from wrenn_sandbox.envd import events
from wrenn_sandbox.envd.ending import Ending
from wrenn_sandbox.envd.output import Chunk, Source


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (events.started(5), {"start": {"pid": 5}}),
        (events.output(Chunk(Source.STDOUT, b"hi")), {"data": {"stdout": "aGk="}}),
        (events.output(Chunk(Source.STDERR, b"hi")), {"data": {"stderr": "aGk="}}),
        (events.output(Chunk(Source.PTY, b"\xff")), {"data": {"pty": "/w=="}}),
        (events.ended(Ending(0, True, "exit status 0")), {"end": {"exited": True, "status": "exit status 0"}}),
        (
            events.ended(Ending(-1, False, "signal: killed")),
            {"end": {"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}},
        ),
        (events.keepalive(), {"keepalive": {}}),
    ],
)
def test_events(event: Message, expected: dict[str, object]) -> None:
    assert json.loads(event.to_json()) == expected
