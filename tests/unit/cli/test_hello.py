"""The first program: what is printed, and that its sandbox never stays."""

from __future__ import annotations

import asyncio

import pytest

from wrenn_sandbox.cli.hello import say_hello
from wrenn_sandbox.core.errors import Bug


class _Api:
    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.calls: list[tuple[str, str]] = []

    async def call(self, method: str, path: str, body: object = None, *, timeout_s: float = 0) -> dict[str, object]:
        self.calls.append((method, path))
        if path == "/v1/sandboxes":
            return {"id": "sb-1", "phases": [{"name": "restore", "ms": 51.4}]}
        return {"exit_code": self.exit_code, "stdout": "hello\n", "stderr": "bad"} if method == "POST" else {}


def test_output_and_phases(capsys: pytest.CaptureFixture[str]) -> None:
    api = _Api(0)
    asyncio.run(say_hello(api))
    printed = capsys.readouterr().out
    assert "  hello\n" in printed
    assert "restore 51" in printed
    assert api.calls[-1] == ("DELETE", "/v1/sandboxes/sb-1")


def test_a_failed_program_is_an_error_and_leaves_nothing() -> None:
    api = _Api(1)
    with pytest.raises(Bug, match="bad"):
        asyncio.run(say_hello(api))
    assert api.calls[-1] == ("DELETE", "/v1/sandboxes/sb-1")
