"""See, follow and end the processes of a sandbox."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from protobuf import Oneof

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.find_sandboxes import find_usable
from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

_MAX_PID = (1 << 32) - 1
_MAX_TAG = 128


class Signal(Enum):
    """What can be sent to a process group."""

    SIGTERM = "SIGTERM"
    SIGKILL = "SIGKILL"


@dataclass(frozen=True, slots=True)
class Process:
    """One process that the sandbox's daemon started."""

    pid: int
    tag: str
    cmd: str
    args: tuple[str, ...]


Selector = Oneof[Literal["pid"], int] | Oneof[Literal["tag"], str]


def select(text: str) -> Selector:
    """A decimal number of 32 bits is a pid, anything else a tag. Raises Invalid."""
    if text.isascii() and text.isdigit() and int(text) <= _MAX_PID:
        pid: Oneof[Literal["pid"], int] = Oneof(field="pid", value=int(text))
        return pid
    if not 0 < len(text) <= _MAX_TAG or "\0" in text:
        raise Invalid("A process is named by its pid or by its tag.")
    tag: Oneof[Literal["tag"], str] = Oneof(field="tag", value=text)
    return tag


async def list_processes(platform: Platform, team: TeamId, sandbox: SandboxId) -> list[Process]:
    """The processes started through the API that still run."""
    await find_usable(platform, team, sandbox)
    request = pb.ListProcessesRequest(sandbox_id=str(sandbox))
    answer = await platform.agent.call("ListProcesses", request, pb.ListProcessesResponse)
    return [Process(entry.pid, entry.tag, entry.cmd, tuple(entry.args)) for entry in answer.processes]


async def kill_process(
    platform: Platform, team: TeamId, sandbox: SandboxId, selector: Selector, signal: Signal
) -> None:
    """Send a signal to a process and its group. Raises NotFound."""
    await find_usable(platform, team, sandbox)
    request = pb.KillProcessRequest(sandbox_id=str(sandbox), selector=selector, signal=signal.value)
    await platform.agent.call("KillProcess", request, pb.KillProcessResponse)


async def follow_process(
    platform: Platform, team: TeamId, sandbox: SandboxId, selector: Selector
) -> AsyncGenerator[pb.ExecStreamResponse, None]:
    """The events of a process from now on. Use within ``aclosing``."""
    await find_usable(platform, team, sandbox)
    request = pb.ConnectProcessRequest(sandbox_id=str(sandbox), selector=selector)
    async with aclosing(platform.agent.stream("ConnectProcess", request, pb.ExecStreamResponse)) as events:
        async for event in events:
            yield event
