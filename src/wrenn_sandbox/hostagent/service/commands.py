"""Calls that run programs without a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

from protobuf import Oneof

from wrenn_sandbox.core.errors import Bug, Invalid, Timeout, WrennError
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.hostagent import wire
from wrenn_sandbox.hostagent.guest_processes import Command, GuestProcesses, ProcessRef
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.tasks import side_tasks
from wrenn_sandbox.rpc.gen.envd import process_pb
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

DEFAULT_EXEC_TIMEOUT_S = 30.0
#: What a buffered exec keeps of each stream.
MAX_OUTPUT_BYTES = 16 * 1024 * 1024
#: The guest ends a command at its time; so much later we stop believing that it will.
GRACE_S = 3.0
COMMAND_TIMEOUT = "command_timeout"

_SIGNALS = {
    "": process_pb.Signal.SIGKILL,
    "SIGKILL": process_pb.Signal.SIGKILL,
    "SIGTERM": process_pb.Signal.SIGTERM,
}


class CommandCalls:
    """Exec in all its forms, and the processes it left behind.

    A cancelled call never ends a program: only its own time, a signal, or the end of the sandbox does.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def exec(self, request: pb.ExecRequest, _ctx: Any) -> pb.ExecResponse:
        """Run to the end and answer with what it wrote, or with what there was when its time was up."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        command, timeout_s = _exec_command(request), wire.timeout_s(request.timeout_sec, DEFAULT_EXEC_TIMEOUT_S)
        async with sandbox.use() as parts:
            return await _buffered(parts.guest.processes, command, request.stdin, timeout_s or DEFAULT_EXEC_TIMEOUT_S)

    async def exec_stream(self, request: pb.ExecRequest, _ctx: Any) -> AsyncIterator[pb.ExecStreamResponse]:
        """Run and answer with what it writes as it comes. Past its time the stream ends with Timeout."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        command, timeout_s = _exec_command(request), wire.timeout_s(request.timeout_sec, None)
        async with sandbox.use() as parts, side_tasks() as feeding:
            processes = parts.guest.processes
            try:
                async with processes.start(command, lifetime_s=timeout_s) as events:
                    async for event in events:
                        if command.stdin and (pid := _started_pid(event)):
                            feeding.create_task(_feed(processes, pid, request.stdin))
                        if (answer := _stream_answer(event)) is not None:
                            yield answer
            except Timeout as error:
                raise _out_of_time(timeout_s) from error

    async def start_background(self, request: pb.StartBackgroundRequest, _ctx: Any) -> pb.StartBackgroundResponse:
        """Start, and answer with the pid."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        command = wire.command(
            request.cmd,
            request.args,
            given_envs=request.envs,
            cwd=request.cwd,
            as_user=request.user,
        )
        command = replace(command, tag=wire.tag(request.tag) if request.tag else "")
        async with sandbox.use() as parts, parts.guest.processes.start(command) as events:
            async for event in events:
                if pid := _started_pid(event):
                    return pb.StartBackgroundResponse(pid=pid, tag=request.tag)
        raise Bug("The guest did not say that the process was started.")

    async def list_processes(self, request: pb.ListProcessesRequest, _ctx: Any) -> pb.ListProcessesResponse:
        """What was started through these calls and runs."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        async with sandbox.use() as parts:
            found = await parts.guest.processes.running()
        entries = [(info, info.config or process_pb.ProcessConfig()) for info in found]
        return pb.ListProcessesResponse(
            processes=[
                pb.ProcessEntry(pid=info.pid, tag=info.tag, cmd=config.cmd, args=list(config.args))
                for info, config in entries
            ]
        )

    async def kill_process(self, request: pb.KillProcessRequest, _ctx: Any) -> pb.KillProcessResponse:
        """Signal the process and its group."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        process, signal = wire.process_ref(request), _SIGNALS.get(request.signal)
        if signal is None:
            raise Invalid("signal must be SIGKILL or SIGTERM.", slug="invalid_signal")
        async with sandbox.use() as parts:
            await parts.guest.processes.signal(process, signal)
        return pb.KillProcessResponse()

    async def connect_process(
        self, request: pb.ConnectProcessRequest, _ctx: Any
    ) -> AsyncIterator[pb.ExecStreamResponse]:
        """The last output and what follows of a process that runs."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        process = wire.process_ref(request)
        async with sandbox.use() as parts, parts.guest.processes.connect(process) as events:
            async for event in events:
                if (answer := _stream_answer(event)) is not None:
                    yield answer


def _exec_command(request: pb.ExecRequest) -> Command:
    command = wire.command(
        request.cmd,
        request.args,
        given_envs=request.envs,
        cwd=request.cwd,
        as_user=request.user,
    )
    return replace(command, stdin=bool(request.stdin))


class _Kept:
    """The first MAX_OUTPUT_BYTES of a stream."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._room = MAX_OUTPUT_BYTES
        self.truncated = False

    def add(self, data: bytes) -> None:
        if len(data) > self._room:
            self.truncated = True
            data = data[: self._room]
        if data:
            self._pieces.append(data)
            self._room -= len(data)

    def all(self) -> bytes:
        return b"".join(self._pieces)


async def _buffered(processes: GuestProcesses, command: Command, stdin: bytes, timeout_s: float) -> pb.ExecResponse:
    out, err = _Kept(), _Kept()
    pid, end = 0, None
    try:
        async with (
            asyncio.timeout(timeout_s + GRACE_S),
            side_tasks() as feeding,
            processes.start(command, lifetime_s=timeout_s) as events,
        ):
            async for event in events:
                if started := _started_pid(event):
                    pid = started
                    if command.stdin:
                        feeding.create_task(_feed(processes, pid, stdin))
                elif (ended := _ended(event)) is not None:
                    end = ended
                else:
                    _keep(event, out, err)
    except (Timeout, TimeoutError):
        end = None
    if end is None:
        await _kill(processes, pid)
    return pb.ExecResponse(
        stdout=out.all(),
        stderr=err.all(),
        exit_code=end.exit_code if end is not None else -1,
        interrupted="" if end is not None else COMMAND_TIMEOUT,
        truncated=out.truncated or err.truncated,
    )


async def _kill(processes: GuestProcesses, pid: int) -> None:
    """Make sure; usually the guest has done it already and knows the process no more."""
    if pid:
        with contextlib.suppress(WrennError):
            await processes.signal(pid, process_pb.Signal.SIGKILL)


async def _feed(processes: GuestProcesses, process: ProcessRef, data: bytes) -> None:
    """Write all of ``data`` and close; a program that does not read it to the end has its reasons."""
    with contextlib.suppress(WrennError):
        await processes.send_input(process, data)
        await processes.close_stdin(process)


def _started_pid(event: process_pb.ProcessEvent) -> int:
    chosen = event.event
    return chosen.value.pid if chosen is not None and chosen.field == "start" else 0


def _ended(event: process_pb.ProcessEvent) -> process_pb.ProcessEvent.EndEvent | None:
    chosen = event.event
    return chosen.value if chosen is not None and chosen.field == "end" else None


def _keep(event: process_pb.ProcessEvent, out: _Kept, err: _Kept) -> None:
    chosen = event.event
    if chosen is None or chosen.field != "data" or chosen.value.output is None:
        return
    (err if chosen.value.output.field == "stderr" else out).add(chosen.value.output.value)


def _stream_answer(event: process_pb.ProcessEvent) -> pb.ExecStreamResponse | None:
    chosen = event.event
    if chosen is None:
        return None
    if chosen.field == "start":
        start: Oneof[Literal["start"], pb.ExecStreamStart] = Oneof("start", pb.ExecStreamStart(pid=chosen.value.pid))
        return pb.ExecStreamResponse(event=start)
    if chosen.field == "end":
        ended = pb.ExecStreamEnd(exit_code=chosen.value.exit_code, error=chosen.value.error)
        end: Oneof[Literal["end"], pb.ExecStreamEnd] = Oneof("end", ended)
        return pb.ExecStreamResponse(event=end)
    if chosen.field == "data" and (output := chosen.value.output) is not None:
        data: Oneof[Literal["data"], pb.ExecStreamData] = Oneof("data", _data(output.field, output.value))
        return pb.ExecStreamResponse(event=data)
    return None


def _data(stream: str, content: bytes) -> pb.ExecStreamData:
    if stream == "stderr":
        stderr: Oneof[Literal["stderr"], bytes] = Oneof("stderr", content)
        return pb.ExecStreamData(output=stderr)
    stdout: Oneof[Literal["stdout"], bytes] = Oneof("stdout", content)
    return pb.ExecStreamData(output=stdout)


def _out_of_time(timeout_s: float | None) -> Timeout:
    return Timeout(f"The command was still running after {timeout_s or 0:.0f} s and was ended.", slug=COMMAND_TIMEOUT)
