"""What envd does once after boot, before anybody else is served: every hot route, through a real connection.

A template is snapshotted soon after. Whatever ran once by then is in the snapshot warm (compiled and specialised code,
modules imported late, the pages of bash and its libraries), and the first request of every sandbox finds it so.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wrenn_sandbox.envd.app import Application

TIMEOUT_S = 60.0
#: CPython specialises code that ran a few times (PEP 659: eight).
ROUNDS = 3

_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\nx\r\n--b--\r\n"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One request of the exercise."""

    method: str
    target: str
    body: bytes = b""
    kind: str = "application/octet-stream"


async def exercise(application: Application, port: int, log: logging.Logger) -> None:
    """Run the exercise, forget it, and open the gate, whatever went wrong."""
    parts = application.parts
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await _requests(application.exercise_token, port)
    except Exception as error:  # a cold sandbox is slow; one that does not come up is worse
        log.warning("start-up exercise: %r", error)
    finally:
        await parts.ports.stop()
        parts.initializer.forget()
        gc.collect()
        gc.freeze()  # what is here now lives as long as the process: never look at it again
        application.open_gate()


async def _requests(token: str, port: int) -> None:
    init = json.dumps({"accessToken": token, "reseed": False, "envVars": {}, "timestamp": 0}).encode()
    commands = [["true"], *([["/bin/bash", "-l", "-c", "true"]] if Path("/bin/bash").exists() else [])]
    with tempfile.TemporaryDirectory(prefix=".envd-") as folder:
        file = f"/files?username=root&path={folder}/x"
        steps = [
            Step("GET", "/health"),
            Step("POST", "/init", init, "application/json"),
            Step("POST", file, b"x"),
            Step("POST", file, _FORM, "multipart/form-data; boundary=b"),
            Step("GET", file),
            Step("GET", "/files?username=root&path=/proc/self/status"),
            Step("GET", "/metrics"),
            Step("GET", "/envs"),
            *(Step("POST", "/process.Process/Start", start(argv), "application/connect+proto") for argv in commands),
        ]
        for step in steps * ROUNDS:
            answer = await request(port, token, step)
            if not answer.startswith(b"HTTP/1.1 2"):
                raise RuntimeError(f"{step.method} {step.target}: {answer[:300]!r}")


async def request(port: int, token: str, step: Step) -> bytes:
    """One request on a connection of its own; returns the raw answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = (
            f"{step.method} {step.target} HTTP/1.1\r\nhost: envd\r\nconnection: close\r\nx-access-token: {token}\r\n"
            f"content-type: {step.kind}\r\ncontent-length: {len(step.body)}\r\n\r\n"
        )
        writer.write(head.encode() + step.body)
        return await reader.read()
    finally:
        writer.close()


def start(argv: list[str]) -> bytes:
    """A StartRequest in the envelope of a Connect stream: flags, length, message."""
    from wrenn_sandbox.rpc.gen.envd.process_pb import ProcessConfig, StartRequest

    message = StartRequest(process=ProcessConfig(cmd=argv[0], args=argv[1:]), stdin=False).to_binary()
    return b"\0" + len(message).to_bytes(4, "big") + message
