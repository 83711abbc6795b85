"""Run a command in a sandbox: to its end, as a stream of output, or in the background."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.find_sandboxes import find_usable
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

DEFAULT_TIMEOUT_S = 30
#: How much longer than the command we wait for the host's answer; the host ends the command at its own time.
_MARGIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. ``timeout_s`` 0 means the default for a foreground command and none for a stream."""

    cmd: str
    args: tuple[str, ...] = ()
    envs: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    user: str = ""
    stdin: bytes = b""
    timeout_s: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. ``interrupted`` is the slug of why it did not run to its end, else empty."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    interrupted: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Started:
    """A process that runs on by itself."""

    pid: int
    tag: str


async def run_command(platform: Platform, team: TeamId, sandbox: SandboxId, command: Command) -> Outcome:
    """Run a command to its end. A command that does not exist ends with 127; one out of time keeps its output."""
    await find_usable(platform, team, sandbox)
    limit_s = (command.timeout_s or DEFAULT_TIMEOUT_S) + _MARGIN_S
    answer = await platform.agent.call("Exec", _request(sandbox, command), pb.ExecResponse, timeout_s=limit_s)
    exit_code = answer.exit_code if answer.exit_code or not answer.interrupted else -1
    return Outcome(answer.stdout, answer.stderr, exit_code, answer.interrupted, answer.truncated)


async def stream_command(
    platform: Platform, team: TeamId, sandbox: SandboxId, command: Command
) -> AsyncGenerator[pb.ExecStreamResponse, None]:
    """Run a command and yield its events; leaving early does not end the process. Use within ``aclosing``."""
    await find_usable(platform, team, sandbox)
    request = _request(sandbox, command)
    async with aclosing(platform.agent.stream("ExecStream", request, pb.ExecStreamResponse)) as events:
        async for event in events:
            yield event


async def start_background(platform: Platform, team: TeamId, sandbox: SandboxId, command: Command, tag: str) -> Started:
    """Start a process that outlives the request; an empty ``tag`` is replaced by a new one."""
    await find_usable(platform, team, sandbox)
    request = pb.StartBackgroundRequest(
        sandbox_id=str(sandbox),
        cmd=command.cmd,
        args=list(command.args),
        tag=tag or f"proc-{secrets.token_hex(4)}",
        envs=command.envs,
        cwd=command.cwd,
        user=command.user,
    )
    answer = await platform.agent.call("StartBackground", request, pb.StartBackgroundResponse)
    return Started(answer.pid, answer.tag or request.tag)


def _request(sandbox: SandboxId, command: Command) -> pb.ExecRequest:
    return pb.ExecRequest(
        sandbox_id=str(sandbox),
        cmd=command.cmd,
        args=list(command.args),
        timeout_sec=command.timeout_s,
        envs=command.envs,
        cwd=command.cwd,
        user=command.user,
        stdin=command.stdin,
    )
