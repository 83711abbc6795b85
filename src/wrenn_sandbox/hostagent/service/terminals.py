"""Calls on terminals. A terminal is named by its tag and lives until it is killed or its program ends."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

from protobuf import Oneof

from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.hostagent import wire
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.sandbox import Sandbox
from wrenn_sandbox.rpc.gen.envd import process_pb
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

#: A shell that knows no better shows colours and UTF-8.
_DEFAULT_ENVS = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


class TerminalCalls:
    """Attach, type, resize, kill. Whoever detaches leaves the terminal running."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def pty_attach(self, request: pb.PtyAttachRequest, _ctx: Any) -> AsyncIterator[pb.PtyAttachResponse]:
        """Start a terminal, or attach to the one with the tag: then its last output comes first."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        tag = wire.tag(request.tag if request.tag or not request.cmd else f"pty-{secrets.token_hex(6)}")
        if request.cmd:
            command = wire.command(
                request.cmd,
                request.args,
                given_envs={**_DEFAULT_ENVS, **request.envs},
                cwd=request.cwd,
                as_user=request.user,
            )
            command = replace(command, tag=tag, terminal=wire.terminal(request.cols, request.rows), stdin=True)
        async with sandbox.use() as parts:
            processes = parts.guest.processes
            async with processes.start(command) if request.cmd else processes.connect(tag) as events:
                async for event in events:
                    if (answer := _answer(event, tag)) is not None:
                        yield answer

    async def pty_send_input(self, request: pb.PtySendInputRequest, _ctx: Any) -> pb.PtySendInputResponse:
        """Type."""
        sandbox, tag = self._named(request)
        async with sandbox.use() as parts:
            await parts.guest.processes.send_input(tag, request.data, terminal=True)
        return pb.PtySendInputResponse()

    async def pty_resize(self, request: pb.PtyResizeRequest, _ctx: Any) -> pb.PtyResizeResponse:
        """Give it another size."""
        sandbox, tag = self._named(request)
        size = wire.terminal(request.cols, request.rows)
        async with sandbox.use() as parts:
            await parts.guest.processes.resize(tag, size)
        return pb.PtyResizeResponse()

    async def pty_kill(self, request: pb.PtyKillRequest, _ctx: Any) -> pb.PtyKillResponse:
        """End it and everything in its process group."""
        sandbox, tag = self._named(request)
        async with sandbox.use() as parts:
            await parts.guest.processes.signal(tag, process_pb.Signal.SIGKILL)
        return pb.PtyKillResponse()

    def _named(self, request: pb.PtySendInputRequest | pb.PtyResizeRequest | pb.PtyKillRequest) -> tuple[Sandbox, str]:
        return self._registry.get(SandboxId.parse(request.sandbox_id)), wire.tag(request.tag)


def _answer(event: process_pb.ProcessEvent, tag: str) -> pb.PtyAttachResponse | None:
    chosen = event.event
    if chosen is None:
        return None
    if chosen.field == "start":
        began = pb.PtyStarted(pid=chosen.value.pid, tag=tag)
        started: Oneof[Literal["started"], pb.PtyStarted] = Oneof("started", began)
        return pb.PtyAttachResponse(event=started)
    if chosen.field == "end":
        ended = pb.PtyExited(exit_code=chosen.value.exit_code, error=chosen.value.error)
        exited: Oneof[Literal["exited"], pb.PtyExited] = Oneof("exited", ended)
        return pb.PtyAttachResponse(event=exited)
    if chosen.field == "data" and (shown := chosen.value.output) is not None:
        output: Oneof[Literal["output"], pb.PtyOutput] = Oneof("output", pb.PtyOutput(data=shown.value))
        return pb.PtyAttachResponse(event=output)
    return None
