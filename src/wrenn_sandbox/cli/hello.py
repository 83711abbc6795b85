"""The first program: makes a sandbox, runs Python in it, and prints its output with the time of each phase."""

from __future__ import annotations

import time

from wrenn_sandbox.cli.api import Api
from wrenn_sandbox.core.errors import Bug

_PROGRAM = (
    "import os, platform; "
    "print(f'hello from {platform.node()}: Linux {platform.release()}, Python {platform.python_version()}, "
    "{os.cpu_count()} vCPU')"
)


async def say_hello(api: Api) -> None:
    """Print what a program in a fresh sandbox prints; the sandbox is gone afterwards."""
    started = time.monotonic()
    created = await api.call("POST", "/v1/sandboxes", {"template": "base"}, timeout_s=180)
    after_create = time.monotonic()
    path = f"/v1/sandboxes/{created['id']}"
    try:
        answer = await api.call("POST", f"{path}/exec", {"cmd": "python3", "args": ["-c", _PROGRAM], "timeout_sec": 60})
        after_exec = time.monotonic()
    finally:
        await api.call("DELETE", path)
    if answer.get("exit_code") != 0:
        raise Bug(f"The first program failed: {answer.get('stderr')}", slug="hello_failed")
    print(f"\n  {str(answer['stdout']).rstrip()}\n", flush=True)
    print(f"  create   {_ms(after_create - started)}   {_phases(created.get('phases'))}")
    print(f"  run      {_ms(after_exec - after_create)}   python3 -c …, cold")
    print(f"  destroy  {_ms(time.monotonic() - after_exec)}\n", flush=True)


def _phases(phases: object) -> str:
    if not isinstance(phases, list):
        return ""
    return ", ".join(f"{phase['name']} {phase['ms']:.0f}" for phase in phases if isinstance(phase, dict))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:6.0f} ms"
