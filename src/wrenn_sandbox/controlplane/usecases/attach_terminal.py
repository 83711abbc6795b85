"""Terminals: start one or come back to one, type, resize, end it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.find_sandboxes import find_usable
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

#: Input to a program that does not read waits this long in the guest before it is refused.
INPUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Size:
    """Columns and rows."""

    cols: int = 80
    rows: int = 24


@dataclass(frozen=True, slots=True)
class Shell:
    """What to run in a new terminal."""

    cmd: str = "/bin/bash"
    args: tuple[str, ...] = ()
    envs: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    user: str = ""
    size: Size = Size()


@dataclass(frozen=True, slots=True)
class Terminal:
    """One terminal of one sandbox, by its tag."""

    platform: Platform
    sandbox: SandboxId
    tag: str

    async def type(self, data: bytes) -> None:
        """Send input. Raises NotFound when the terminal has ended."""
        request = pb.PtySendInputRequest(sandbox_id=str(self.sandbox), tag=self.tag, data=data)
        await self.platform.agent.call("PtySendInput", request, pb.PtySendInputResponse, timeout_s=INPUT_S)

    async def resize(self, size: Size) -> None:
        """Change the window."""
        request = pb.PtyResizeRequest(sandbox_id=str(self.sandbox), tag=self.tag, cols=size.cols, rows=size.rows)
        await self.platform.agent.call("PtyResize", request, pb.PtyResizeResponse)

    async def kill(self) -> None:
        """End what runs in it."""
        request = pb.PtyKillRequest(sandbox_id=str(self.sandbox), tag=self.tag)
        await self.platform.agent.call("PtyKill", request, pb.PtyKillResponse)


async def open_terminal(platform: Platform, team: TeamId, sandbox: SandboxId, tag: str = "") -> Terminal:
    """The terminal with ``tag``, or one with a new tag; nothing runs in a new one until it is attached to."""
    await find_usable(platform, team, sandbox)
    return Terminal(platform, sandbox, tag or f"pty-{secrets.token_hex(4)}")


async def attach(terminal: Terminal, shell: Shell | None) -> AsyncGenerator[pb.PtyAttachResponse, None]:
    """The terminal's events: a new one with ``shell``, else the one that has the tag. Use within ``aclosing``."""
    request = pb.PtyAttachRequest(sandbox_id=str(terminal.sandbox), tag=terminal.tag)
    if shell is not None:
        request = pb.PtyAttachRequest(
            sandbox_id=str(terminal.sandbox),
            tag=terminal.tag,
            cmd=shell.cmd,
            args=list(shell.args),
            cols=shell.size.cols,
            rows=shell.size.rows,
            envs=shell.envs,
            cwd=shell.cwd,
            user=shell.user,
        )
    agent = terminal.platform.agent
    async with aclosing(agent.stream("PtyAttach", request, pb.PtyAttachResponse)) as events:
        async for event in events:
            yield event
