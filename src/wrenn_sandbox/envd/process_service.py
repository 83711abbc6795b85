"""``process.Process`` of the wire: requests in, events out. The rules are those of processes.py and process.py.

A request's ``connect-timeout-ms`` bounds the process that it starts, whether or not its caller stays: the process
keeps the deadline itself. So when connectrpc cancels a stream, only one question is open: is its time up (then the
process dies before the stream's last frame is sent) or has its caller gone (then the process goes on)?
"""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf import Oneof

from wrenn_sandbox.envd import events, pty
from wrenn_sandbox.envd.environment import argument, environment
from wrenn_sandbox.envd.input import InputClosedError
from wrenn_sandbox.envd.output import Chunk
from wrenn_sandbox.envd.process import Process
from wrenn_sandbox.envd.processes import ProcessTable, Program
from wrenn_sandbox.envd.users import User, basic_username, resolve_path, resolve_user
from wrenn_sandbox.rpc.gen.envd import process_pb as wire

if TYPE_CHECKING:
    from connectrpc.request import Headers, RequestContext

    from wrenn_sandbox.envd.context import GuestContext

DEFAULT_KEEPALIVE_S = 90
KEEPALIVE_HEADER = "keepalive-ping-interval"
#: Ours: any value but "0" makes Connect begin with the process's last output.
REPLAY_HEADER = "wrenn-replay"

ListContext: TypeAlias = "RequestContext[wire.ListRequest, wire.ListResponse]"
StartContext: TypeAlias = "RequestContext[wire.StartRequest, wire.StartResponse]"
ConnectContext: TypeAlias = "RequestContext[wire.ConnectRequest, wire.ConnectResponse]"
UpdateContext: TypeAlias = "RequestContext[wire.UpdateRequest, wire.UpdateResponse]"
StreamInputContext: TypeAlias = "RequestContext[wire.StreamInputRequest, wire.StreamInputResponse]"
SendInputContext: TypeAlias = "RequestContext[wire.SendInputRequest, wire.SendInputResponse]"
SendSignalContext: TypeAlias = "RequestContext[wire.SendSignalRequest, wire.SendSignalResponse]"
CloseStdinContext: TypeAlias = "RequestContext[wire.CloseStdinRequest, wire.CloseStdinResponse]"


class ProcessService:
    """Implements the generated protocol ``Process``."""

    def __init__(self, context: GuestContext, table: ProcessTable) -> None:
        self._context = context
        self._table = table

    async def list(self, _request: wire.ListRequest, _ctx: ListContext) -> wire.ListResponse:
        """What runs now and was started here."""
        infos = []
        for process, tag, config in self._table.live():
            assert isinstance(config, wire.ProcessConfig)
            info = wire.ProcessInfo(config=config, pid=process.pid)
            if tag is not None:
                info.tag = tag
            infos.append(info)
        return wire.ListResponse(processes=infos)

    async def start(self, request: wire.StartRequest, ctx: StartContext) -> AsyncIterator[wire.StartResponse]:
        """Start a process and follow it."""
        config = request.process or wire.ProcessConfig()
        process = self._table.start(self._program(request, config, ctx.request_headers), config)
        if (left_ms := ctx.timeout_ms) is not None:
            process.expire_at(asyncio.get_running_loop().time() + left_ms / 1000)
        try:
            async with aclosing(follow(process, keepalive_s(ctx.request_headers))) as following:
                async for event in following:
                    if process.expired and event.event is not None and event.event.field == "end":
                        raise ConnectError(Code.DEADLINE_EXCEEDED, "The process was killed: its time was up.")
                    yield wire.StartResponse(event=event)
        finally:
            if (left_ms := ctx.timeout_ms) is not None and left_ms < 1:
                process.expire()

    async def connect(self, request: wire.ConnectRequest, ctx: ConnectContext) -> AsyncIterator[wire.ConnectResponse]:
        """Follow a process that was started before."""
        process = self._find(request.process)
        replay = ctx.request_headers.get(REPLAY_HEADER, "0") != "0"
        async with aclosing(follow(process, keepalive_s(ctx.request_headers), replay=replay)) as following:
            async for event in following:
                yield wire.ConnectResponse(event=event)

    async def update(self, request: wire.UpdateRequest, _ctx: UpdateContext) -> wire.UpdateResponse:
        """Resize a terminal."""
        process = self._running(request.process)
        if request.pty is not None and request.pty.size is not None:
            if not process.has_terminal:
                raise ConnectError(Code.INVALID_ARGUMENT, "The process has no terminal; start it with a pty.")
            process.resize(pty.size_of(request.pty.size.cols, request.pty.size.rows))
        return wire.UpdateResponse()

    async def stream_input(
        self, request: AsyncIterator[wire.StreamInputRequest], _ctx: StreamInputContext
    ) -> wire.StreamInputResponse:
        """Write what comes, in order. The stream's end closes nothing."""
        process: Process | None = None
        async for message in request:
            event = message.event
            if event is None or event.field == "keepalive":
                continue
            if event.field == "start":
                process = self._running(event.value.process)
            elif process is None:
                raise ConnectError(Code.INVALID_ARGUMENT, "The first message must be a start event.")
            else:
                await _write(process, event.value.input)
        return wire.StreamInputResponse()

    async def send_input(self, request: wire.SendInputRequest, _ctx: SendInputContext) -> wire.SendInputResponse:
        """Write to the standard input or the terminal; returns when all of it is in the kernel."""
        await _write(self._running(request.process), request.input)
        return wire.SendInputResponse()

    async def send_signal(self, request: wire.SendSignalRequest, _ctx: SendSignalContext) -> wire.SendSignalResponse:
        """Signal the process and its group."""
        process = self._running(request.process)
        if not 1 <= request.signal <= 31:
            raise ConnectError(Code.INVALID_ARGUMENT, "Name the signal to send, for example SIGNAL_SIGTERM.")
        process.signal(int(request.signal))
        return wire.SendSignalResponse()

    async def close_stdin(self, request: wire.CloseStdinRequest, _ctx: CloseStdinContext) -> wire.CloseStdinResponse:
        """Let the process read the end of its input."""
        process = self._running(request.process)
        if process.has_terminal:
            raise ConnectError(
                Code.INVALID_ARGUMENT, "A terminal's input cannot be closed; send Ctrl-D (0x04) as pty input instead."
            )
        if process.stdin is not None:
            process.stdin.close()
        return wire.CloseStdinResponse()

    def _find(self, selector: wire.ProcessSelector | None) -> Process:
        match selector.selector if selector is not None else None:
            case Oneof(field="pid", value=int(pid)):
                return self._table.by_pid(pid)
            case Oneof(field="tag", value=str(tag)):
                return self._table.by_tag(tag)
        raise ConnectError(Code.INVALID_ARGUMENT, "Say which process: give its pid or its tag.")

    def _running(self, selector: wire.ProcessSelector | None) -> Process:
        process = self._find(selector)
        if process.ending is not None:
            raise ConnectError(Code.NOT_FOUND, f"process with pid {process.pid} not found: it has ended")
        return process

    def _program(self, request: wire.StartRequest, config: wire.ProcessConfig, headers: Headers) -> Program:
        if not config.cmd:
            raise ConnectError(Code.INVALID_ARGUMENT, "The command is empty; say what to run in process.cmd.")
        name = basic_username(headers.get("authorization")) or self._context.default_user
        user = resolve_user(name)
        size = None
        if request.pty is not None:
            wanted = request.pty.size or wire.PTY.Size()
            size = pty.size_of(wanted.cols, wanted.rows)
        words = [config.cmd, *config.args]
        return Program(
            command=tuple(argument(word, f"argument {number}") for number, word in enumerate(words)),
            environment=environment(user, self._context.all_envs(), config.envs),
            user=user,
            workdir=workdir(config.cwd, user, self._context.default_workdir),
            terminal=size,
            stdin=request.stdin if request.has_field("stdin") else True,
            tag=request.tag if request.has_field("tag") else None,
        )


async def follow(process: Process, idle_s: float, *, replay: bool = False) -> AsyncGenerator[wire.ProcessEvent, None]:
    """The events of a process from now on: start, output, end, and a keepalive after each ``idle_s`` without any."""
    with _attached(process, replay=replay) as (read, news):
        yield events.started(process.pid)
        while True:
            news.clear()
            if (chunk := read()) is not None:
                yield events.output(chunk)
            elif process.ending is not None:
                yield events.ended(process.ending)
                return
            else:
                try:
                    async with asyncio.timeout(idle_s):
                        await news.wait()
                except TimeoutError:
                    yield events.keepalive()


def keepalive_s(headers: Headers) -> float:
    """The interval that the request's header asks for; the default when it asks for none that makes sense."""
    text = headers.get(KEEPALIVE_HEADER, "")
    return int(text) if text.isdecimal() and int(text) > 0 else DEFAULT_KEEPALIVE_S


def workdir(cwd: str, user: User, default: str) -> str:
    """The directory to start in; ConnectError ``invalid_argument`` when it is none.

    Whether the user may enter it is found out by entering it: then it is the program's exit code 126.
    """
    path = resolve_path(cwd, user, default)
    try:
        if stat.S_ISDIR(Path(path).stat().st_mode):
            return path
        reason = "is not a directory"
    except PermissionError:
        return path
    except OSError as error:
        reason = "does not exist" if error.errno in (errno.ENOENT, errno.ENOTDIR) else f"cannot be: {error.strerror}"
    raise ConnectError(Code.INVALID_ARGUMENT, f"cwd '{path}' {reason}; create it first or name another.")


@contextmanager
def _attached(process: Process, *, replay: bool) -> Iterator[tuple[Callable[[], Chunk | None], asyncio.Event]]:
    """A function that takes the next output, and an event that is set when there may be some, or the end."""
    news = asyncio.Event()
    cursor = process.attach(news.set, replay=replay)

    def read() -> Chunk | None:
        if cursor.cut:
            raise ConnectError(
                Code.ABORTED, "The stream was not read for too long and was cut; connect to the process again."
            )
        return process.next(cursor)

    try:
        yield read, news
    finally:
        process.detach(cursor)


async def _write(process: Process, message: wire.ProcessInput | None) -> None:
    match message.input if message is not None else None:
        case Oneof(field="pty", value=data) if process.has_terminal:
            pass
        case Oneof(field="stdin", value=data) if not process.has_terminal:
            pass
        case Oneof(field=field):
            other = "stdin" if field == "pty" else "pty"
            raise ConnectError(Code.INVALID_ARGUMENT, f"This process takes no {field} input; send it as {other}.")
        case _:
            raise ConnectError(Code.INVALID_ARGUMENT, "There is no input in the request.")
    if process.stdin is None:
        raise ConnectError(Code.INTERNAL, "The process was started without stdin; start it with stdin true.")
    try:
        await process.stdin.write(data)
    except InputClosedError:
        raise ConnectError(Code.INTERNAL, "The process reads no more input: it was closed.") from None
