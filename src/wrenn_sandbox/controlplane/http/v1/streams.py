"""WebSockets of commands: ``exec/stream`` starts one, ``processes/{pid or tag}/stream`` follows one.

Output is text by default, decoded across chunk borders. ``encoding: "base64"``, in the start message or the query,
makes it exact for any bytes.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from wrenn_sandbox.controlplane.http.live import Live
from wrenn_sandbox.controlplane.http.v1.commands import command_of
from wrenn_sandbox.controlplane.http.v1.models import Encoding, Exec
from wrenn_sandbox.controlplane.race import first_of
from wrenn_sandbox.controlplane.usecases.run_command import stream_command
from wrenn_sandbox.controlplane.usecases.steer_processes import Signal, follow_process, kill_process, select
from wrenn_sandbox.core.errors import Invalid, NotFound, Unavailable
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


class Start(Exec):
    """The first message of ``exec/stream``: a command as in ``exec``."""

    type: Literal["start"]
    encoding: Encoding = "utf-8"


class Stop(BaseModel):
    """Kill the command. Merely leaving lets it run on, to be followed again by its pid."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["stop"]


_START: TypeAdapter[Start] = TypeAdapter(Start)
_STOP: TypeAdapter[Stop] = TypeAdapter(Stop)
_ANYTHING: TypeAdapter[object] = TypeAdapter(object)
_ENCODING: TypeAdapter[Encoding] = TypeAdapter(Encoding)


class Output:
    """Turns a command's events into messages and remembers its pid."""

    def __init__(self, live: Live, encoding: Encoding) -> None:
        self._live, self._encoding = live, encoding
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self.pid: int | None = None

    async def relay(self, events: AsyncGenerator[pb.ExecStreamResponse, None]) -> None:
        """Send every event until the command has ended. Raises Unavailable when the stream breaks before that."""
        async with aclosing(events):
            async for event in events:
                match event.event and event.event.value:
                    case pb.ExecStreamStart(pid=pid):
                        self.pid = pid
                        await self._live.send(type="start", pid=pid)
                    case pb.ExecStreamData(output=output) if output is not None:
                        await self._send_data(output.field, output.value)
                    case pb.ExecStreamEnd(exit_code=exit_code, error=error):
                        await self._finish(exit_code, error)
                        return
        raise Unavailable("The output broke off before the command ended; it may still run.", slug="stream_broken")

    async def _send_data(self, name: str, data: bytes, *, final: bool = False) -> None:
        if self._encoding == "base64":
            text = base64.b64encode(data).decode()
        else:
            text = self._decoders[name].decode(data, final)
        if text:
            await self._live.send(type=name, data=text)

    async def _finish(self, exit_code: int, error: str) -> None:
        for name in self._decoders:
            await self._send_data(name, b"", final=True)
        reason = {"reason": error} if error else {}
        await self._live.send(type="exit", exit_code=exit_code, **reason)


async def exec_stream(live: Live) -> None:
    """Run a command and stream its output.

    Client: ``{"type": "start", "cmd", "args"?, "envs"?, "cwd"?, "user"?, "stdin"?, "timeout_sec"?, "encoding"?}``,
    later ``{"type": "stop"}``, which kills it. Server: ``start{pid}``, ``stdout{data}``, ``stderr{data}``,
    ``exit{exit_code}``, ``error{code, data}``.
    """
    start = await live.receive(_START)
    if start.background:
        raise Invalid("background: a stream follows its command; use exec to start one in the background.")
    output = Output(live, start.encoding)
    events = stream_command(live.platform, live.caller.team, live.sandbox, command_of(start))
    await first_of(output.relay(events), _until_stopped(live, output))


async def process_stream(live: Live) -> None:
    """Follow a process, named by pid or tag, from now on. ``?encoding=base64`` makes the output exact."""
    encoding = live.query.get("encoding", "utf-8")
    if encoding not in ("utf-8", "base64"):
        raise Invalid("encoding must be utf-8 or base64.")
    events = follow_process(live.platform, live.caller.team, live.sandbox, select(live.path["selector"]))
    await first_of(Output(live, _ENCODING.validate_python(encoding)).relay(events), _ignore_all(live))


async def _until_stopped(live: Live, output: Output) -> None:
    while True:
        try:
            await live.receive(_STOP)
        except Invalid as error:
            await live.complain(error)
            continue
        if output.pid is None:
            await live.complain(Invalid("The command has not started yet."))
            continue
        try:
            selector = select(str(output.pid))
            await kill_process(live.platform, live.caller.team, live.sandbox, selector, Signal.SIGKILL)
        except NotFound:
            continue  # it has just ended; its exit is on the way


async def _ignore_all(live: Live) -> None:
    while True:
        try:
            await live.receive(_ANYTHING)
        except Invalid:
            continue
