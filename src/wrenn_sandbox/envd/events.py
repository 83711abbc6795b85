"""What happens to a process, as messages of the wire."""

from __future__ import annotations

from typing import Literal

from protobuf import Oneof

from wrenn_sandbox.envd.ending import Ending
from wrenn_sandbox.envd.output import Chunk, Source
from wrenn_sandbox.rpc.gen.envd.process_pb import ProcessEvent


def started(pid: int) -> ProcessEvent:
    """The first event of every stream."""
    event: Oneof[Literal["start"], ProcessEvent.StartEvent] = Oneof("start", ProcessEvent.StartEvent(pid=pid))
    return ProcessEvent(event=event)


def output(chunk: Chunk) -> ProcessEvent:
    """A piece of output."""
    match chunk.source:
        case Source.STDOUT:
            stdout: Oneof[Literal["stdout"], bytes] = Oneof("stdout", chunk.data)
            data = ProcessEvent.DataEvent(output=stdout)
        case Source.STDERR:
            stderr: Oneof[Literal["stderr"], bytes] = Oneof("stderr", chunk.data)
            data = ProcessEvent.DataEvent(output=stderr)
        case Source.PTY:
            terminal: Oneof[Literal["pty"], bytes] = Oneof("pty", chunk.data)
            data = ProcessEvent.DataEvent(output=terminal)
    event: Oneof[Literal["data"], ProcessEvent.DataEvent] = Oneof("data", data)
    return ProcessEvent(event=event)


def ended(ending: Ending) -> ProcessEvent:
    """The last event of every stream."""
    end = ProcessEvent.EndEvent(exit_code=ending.exit_code, exited=ending.exited, status=ending.status)
    if ending.error is not None:
        end.error = ending.error
    event: Oneof[Literal["end"], ProcessEvent.EndEvent] = Oneof("end", end)
    return ProcessEvent(event=event)


def keepalive() -> ProcessEvent:
    """Nothing happened for a while, which whoever sits between may want to know."""
    event: Oneof[Literal["keepalive"], ProcessEvent.KeepAlive] = Oneof("keepalive", ProcessEvent.KeepAlive())
    return ProcessEvent(event=event)
