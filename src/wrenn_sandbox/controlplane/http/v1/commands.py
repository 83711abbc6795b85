"""``/v1/sandboxes/{id}/exec`` and ``/processes``: run commands, see and end processes."""

from __future__ import annotations

import base64
import time
from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from wrenn_sandbox.controlplane.http.auth import Here, InPath, Who
from wrenn_sandbox.controlplane.http.v1.models import BackgroundOut, Exec, ExecOut, ProcessesOut, ProcessOut
from wrenn_sandbox.controlplane.http.v1.sandboxes import wire_id
from wrenn_sandbox.controlplane.usecases import steer_processes
from wrenn_sandbox.controlplane.usecases.run_command import Command, Outcome, run_command, start_background
from wrenn_sandbox.controlplane.usecases.steer_processes import Signal, select
from wrenn_sandbox.core.errors import Invalid, TooLarge

#: The host takes messages of 4 MiB; beside its input a command has arguments and an environment.
MAX_STDIN_BYTES = 2 << 20


async def exec_command(request: Request, here: Here, who: Who, sandbox: InPath, body: Exec) -> Response:
    """Run a command to its end and answer with its output, or start it in the background (202).

    A command that cannot be found ends with exit code 127, one killed by a signal with its negative number or -1.
    """
    command = command_of(body)
    if body.background:
        started = await start_background(here, who.team, sandbox, command, body.tag or "")
        shown = BackgroundOut(sandbox_id=wire_id(request, sandbox), cmd=body.cmd, pid=started.pid, tag=started.tag)
        return Response(shown.model_dump_json(), 202, media_type="application/json")
    begun = time.monotonic()
    outcome = await run_command(here, who.team, sandbox, command)
    duration_ms = round((time.monotonic() - begun) * 1000)
    stdout, stderr, encoding = _texts(outcome)
    answer = ExecOut(
        sandbox_id=wire_id(request, sandbox),
        cmd=body.cmd,
        stdout=stdout,
        stderr=stderr,
        exit_code=outcome.exit_code,
        duration_ms=duration_ms,
        encoding=encoding,  # type: ignore[arg-type]
        truncated=outcome.truncated,
        interrupted=outcome.interrupted or None,
    )
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


async def list_processes(here: Here, who: Who, sandbox: InPath) -> Response:
    """List the processes started through the API that still run."""
    found = await steer_processes.list_processes(here, who.team, sandbox)
    shown = [ProcessOut(pid=p.pid, tag=p.tag or None, cmd=p.cmd, args=list(p.args)) for p in found]
    body = ProcessesOut(processes=shown).model_dump_json(exclude_none=True)
    return Response(body, media_type="application/json")


async def kill_process(
    here: Here, who: Who, sandbox: InPath, selector: str, signal: Annotated[Signal, Query()] = Signal.SIGKILL
) -> Response:
    """Send a signal to a process, named by pid or tag, and to its group."""
    await steer_processes.kill_process(here, who.team, sandbox, select(selector), signal)
    return Response(status_code=204)


def command_of(body: Exec) -> Command:
    """The command that a body describes. Raises Invalid, and TooLarge for too much standard input."""
    try:
        stdin = body.stdin_bytes()
    except ValueError as error:
        raise Invalid(f"stdin: {error}.") from error
    if len(stdin) > MAX_STDIN_BYTES:
        raise TooLarge(f"stdin must not be larger than {MAX_STDIN_BYTES >> 20} MiB: write it to a file first.")
    return Command(
        cmd=body.cmd,
        args=tuple(body.args),
        envs=body.envs,
        cwd=body.cwd,
        user=body.user,
        stdin=stdin,
        timeout_s=body.timeout_sec,
    )


def _texts(outcome: Outcome) -> tuple[str, str, str]:
    try:
        return outcome.stdout.decode(), outcome.stderr.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(outcome.stdout).decode(), base64.b64encode(outcome.stderr).decode(), "base64"
