from __future__ import annotations

import asyncio
import logging

import pytest

from tests.unit.envd.test_app import Bench
from wrenn_sandbox.envd import exercise
from wrenn_sandbox.rpc.gen.envd.process_pb import StartRequest


def test_start_is_one_frame_of_a_connect_stream() -> None:
    frame = exercise.start(["bash", "-c", "true"])
    assert frame[0] == 0
    assert int.from_bytes(frame[1:5], "big") == len(frame) - 5
    request = StartRequest.from_binary(frame[5:])
    assert request.process is not None
    assert (request.process.cmd, list(request.process.args), request.stdin) == ("bash", ["-c", "true"], False)


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_all_is_forgotten_and_the_gate_is_open(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    steps: list[str] = []
    frozen: list[bool] = []

    async def main() -> None:
        bench = Bench(None)

        async def request(_port: int, token: str, step: exercise.Step) -> bytes:
            assert token == bench.application.exercise_token
            bench.context.access_token = token
            steps.append(f"{step.method} {step.target.partition('?')[0]}")
            if fails:
                raise ConnectionResetError
            return b"HTTP/1.1 204 No Content\r\n\r\n"

        monkeypatch.setattr(exercise, "request", request)
        monkeypatch.setattr(exercise.gc, "freeze", lambda: frozen.append(True))
        await exercise.exercise(bench.application, 1, logging.getLogger("test"))
        assert bench.context.access_token is None
        assert bench.ports.calls == ["stop"]
        assert bench.application._gate.is_set()

    asyncio.run(main())
    assert frozen == [True]
    if not fails:
        hot = {"GET /health", "POST /init", "GET /files", "POST /files", "POST /process.Process/Start"}
        assert hot <= set(steps)
        assert steps.count("POST /init") == exercise.ROUNDS
