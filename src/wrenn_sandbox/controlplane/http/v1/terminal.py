"""The terminal's WebSocket. Input waits for the program, not for luck: nothing typed is dropped or reordered."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from wrenn_sandbox.controlplane.http.live import Live
from wrenn_sandbox.controlplane.http.v1.models import Argument, Dimension, Environment, Line
from wrenn_sandbox.controlplane.race import first_of
from wrenn_sandbox.controlplane.usecases.attach_terminal import Shell, Size, Terminal, attach, open_terminal
from wrenn_sandbox.core.errors import Invalid, Unavailable, WrennError
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

#: Frames read ahead of the program; past it the socket is not read, and the client waits.
_QUEUE = 64
#: Consecutive inputs travel together up to this size.
_MAX_INPUT_BYTES = 64 * 1024


class Message(BaseModel):
    """Any message of a terminal's client."""

    model_config = ConfigDict(extra="ignore")


class Start(Message):
    """Begin a new terminal."""

    type: Literal["start"]
    cmd: Argument = "/bin/bash"
    args: list[Argument] = Field(default_factory=list, max_length=1024)
    cols: Dimension = 80
    rows: Dimension = 24
    envs: Environment = Field(default_factory=dict)
    cwd: Line = ""
    user: Line = ""


class Connect(Message):
    """Come back to a terminal."""

    type: Literal["connect"]
    tag: Annotated[str, Field(min_length=1, max_length=128)]


class Input(Message):
    """Keys, as base64."""

    type: Literal["input"]
    data: str

    def raw(self) -> bytes:
        """The bytes. Raises Invalid."""
        try:
            return base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Invalid("data: input must be base64.") from error


class Resize(Message):
    """A new window size."""

    type: Literal["resize"]
    cols: Dimension
    rows: Dimension


class Kill(Message):
    """End what runs in the terminal."""

    type: Literal["kill"]


class Pong(Message):
    """An answer to a ping, which clients of other servers send."""

    type: Literal["pong"]


_FIRST: TypeAdapter[Start | Connect] = TypeAdapter(Annotated[Start | Connect, Field(discriminator="type")])
_LATER: TypeAdapter[Input | Resize | Kill | Pong] = TypeAdapter(
    Annotated[Input | Resize | Kill | Pong, Field(discriminator="type")]
)


async def pty(live: Live) -> None:
    """Open a terminal, or come back to one.

    Client: ``{"type": "start", "cmd"?, "args"?, "cols"?, "rows"?, "envs"?, "cwd"?, "user"?}`` or ``{"type": "connect",
    "tag"}``; then ``input{data: base64}``, ``resize{cols, rows}``, ``kill``. Server: ``started{tag, pid}``,
    ``output{data: base64}``, ``exit{exit_code}``, ``error{code, data}``. Leaving detaches; the shell lives on.
    """
    first = await live.receive(_FIRST)
    tag = first.tag if isinstance(first, Connect) else ""
    terminal = await open_terminal(live.platform, live.caller.team, live.sandbox, tag)
    session = _Session(live, terminal)
    if isinstance(first, Start):
        shell = Shell(first.cmd, tuple(first.args), first.envs, first.cwd, first.user, Size(first.cols, first.rows))
        events = attach(terminal, shell)
    else:
        session.attached.set()  # it runs already; there is no start to wait for
        events = attach(terminal, None)
    await first_of(session.show(events), session.read(), session.write())


class _Session:
    """One socket on one terminal."""

    def __init__(self, live: Live, terminal: Terminal) -> None:
        self._live, self._terminal = live, terminal
        self._queue: asyncio.Queue[bytes | Size] = asyncio.Queue(_QUEUE)
        self.attached = asyncio.Event()

    async def show(self, events: AsyncGenerator[pb.PtyAttachResponse, None]) -> None:
        """Send what the terminal shows until it ends."""
        async with aclosing(events):
            async for event in events:
                match event.event and event.event.value:
                    case pb.PtyStarted(pid=pid, tag=tag):
                        await self._live.send(type="started", tag=tag or self._terminal.tag, pid=pid)
                        self.attached.set()
                    case pb.PtyOutput(data=data):
                        await self._live.send(type="output", data=base64.b64encode(data).decode())
                    case pb.PtyExited(exit_code=exit_code, error=error):
                        reason = {"reason": error} if error else {}
                        await self._live.send(type="exit", exit_code=exit_code, **reason)
                        return
        raise Unavailable("The terminal's output broke off; connect to its tag again.", slug="stream_broken")

    async def read(self) -> None:
        """Take the client's messages; when the queue is full the client waits."""
        while True:
            try:
                match await self._live.receive(_LATER):
                    case Input() as typed:
                        await self._queue.put(typed.raw())
                    case Resize(cols=cols, rows=rows):
                        await self._queue.put(Size(cols, rows))
                    case Kill():  # does not queue behind input that nobody reads
                        await self.attached.wait()
                        await self._terminal.kill()
            except WrennError as error:
                await self._live.complain(error)

    async def write(self) -> None:
        """Pass input and sizes on, in order."""
        await self.attached.wait()
        waiting: bytes | Size | None = None
        while True:
            item = waiting if waiting is not None else await self._queue.get()
            waiting = None
            try:
                if isinstance(item, Size):
                    await self._terminal.resize(item)
                else:
                    data, waiting = self._with_following(item)
                    await self._terminal.type(data)
            except WrennError as error:
                await self._live.complain(error)

    def _with_following(self, first: bytes) -> tuple[bytes, bytes | Size | None]:
        parts, size = [first], len(first)
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, Size) or size + len(item) > _MAX_INPUT_BYTES:
                return b"".join(parts), item
            parts.append(item)
            size += len(item)
        return b"".join(parts), None
