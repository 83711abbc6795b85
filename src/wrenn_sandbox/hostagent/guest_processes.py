"""Processes of one guest, over envd's ``process.Process``."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from protobuf import Oneof

from wrenn_sandbox.core.errors import Invalid, NotFound, Timeout, Unauthenticated, Unavailable
from wrenn_sandbox.rpc.channel import Channel
from wrenn_sandbox.rpc.gen.envd import process_pb as pb

CALL_TIMEOUT_S = 30.0
#: Input is sent in pieces of this size, so that it stays below the guest's limit on one message.
INPUT_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Terminal:
    """Size of a pseudo-terminal, characters."""

    cols: int = 80
    rows: int = 24


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start. ``user``, ``cwd`` and ``tag`` empty: the sandbox's default, the user's home, none."""

    cmd: str
    args: Sequence[str] = ()
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    user: str = ""
    tag: str = ""
    terminal: Terminal | None = None
    stdin: bool = False


#: A process is named by its pid or by its tag.
ProcessRef = int | str


class GuestProcesses:
    """Start, find, feed and stop processes. Every stream is a context: leaving it closes the connection, no more."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @asynccontextmanager
    async def start(
        self, command: Command, *, lifetime_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[pb.ProcessEvent]]:
        """A new process and its events. The guest kills it after ``lifetime_s`` and then the stream raises Timeout."""
        request = pb.StartRequest(
            process=pb.ProcessConfig(
                cmd=command.cmd, args=list(command.args), envs=dict(command.envs), cwd=command.cwd or None
            ),
            pty=_pty(command.terminal) if command.terminal else None,
            tag=command.tag or None,
            stdin=command.stdin,
        )
        stream = self._channel.server_stream(
            "Start", request, pb.StartResponse, timeout_s=lifetime_s, headers=_as_user(command.user)
        )
        async with _opened(stream) as answers:
            yield _events(answers)

    @asynccontextmanager
    async def connect(self, process: ProcessRef) -> AsyncIterator[AsyncIterator[pb.ProcessEvent]]:
        """The last output and the coming events of a running process, or of one that ended at most 30 s ago."""
        request = pb.ConnectRequest(process=_selector(process))
        stream = self._channel.server_stream("Connect", request, pb.ConnectResponse, headers={"wrenn-replay": "1"})
        async with _opened(stream) as answers:
            yield _events(answers)

    async def running(self) -> Sequence[pb.ProcessInfo]:
        """Processes that were started through envd and have not ended."""
        with _translated():
            answer = await self._channel.unary("List", pb.ListRequest(), pb.ListResponse, timeout_s=CALL_TIMEOUT_S)
        return answer.processes

    async def send_input(self, process: ProcessRef, data: bytes, *, terminal: bool = False) -> None:
        """Write to the standard input, or to the terminal, of a process."""
        kind = "pty" if terminal else "stdin"
        for at in range(0, len(data), INPUT_BYTES):
            piece = pb.ProcessInput(input=Oneof(kind, data[at : at + INPUT_BYTES]))  # type: ignore[arg-type]
            request = pb.SendInputRequest(process=_selector(process), input=piece)
            with _translated():
                await self._channel.unary("SendInput", request, pb.SendInputResponse, timeout_s=CALL_TIMEOUT_S)

    async def close_stdin(self, process: ProcessRef) -> None:
        """Let the process read the end of its input."""
        request = pb.CloseStdinRequest(process=_selector(process))
        with _translated():
            await self._channel.unary("CloseStdin", request, pb.CloseStdinResponse, timeout_s=CALL_TIMEOUT_S)

    async def resize(self, process: ProcessRef, terminal: Terminal) -> None:
        """Give the process's terminal another size."""
        request = pb.UpdateRequest(process=_selector(process), pty=_pty(terminal))
        with _translated():
            await self._channel.unary("Update", request, pb.UpdateResponse, timeout_s=CALL_TIMEOUT_S)

    async def signal(self, process: ProcessRef, signal: pb.Signal) -> None:
        """Signal the process's whole group."""
        request = pb.SendSignalRequest(process=_selector(process), signal=signal)
        with _translated():
            await self._channel.unary("SendSignal", request, pb.SendSignalResponse, timeout_s=CALL_TIMEOUT_S)


@asynccontextmanager
async def _opened(
    stream: AbstractAsyncContextManager[AsyncIterator[pb.StartResponse | pb.ConnectResponse]],
) -> AsyncIterator[AsyncIterator[pb.StartResponse | pb.ConnectResponse]]:
    async with AsyncExitStack() as stack:
        with _translated():
            answers = await stack.enter_async_context(stream)
        yield answers


async def _events(answers: AsyncIterator[pb.StartResponse | pb.ConnectResponse]) -> AsyncIterator[pb.ProcessEvent]:
    with _translated():
        async for answer in answers:
            if answer.event is not None:
                yield answer.event


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Unauthenticated as error:  # envd's answer to a user name it does not know
        raise Invalid(f"The guest refused the user: {error.message}", slug="invalid_user") from error
    except NotFound as error:
        raise NotFound(f"There is no such process: {error.message}", slug="process_not_found") from error
    except Unavailable as error:
        raise Unavailable(
            "The sandbox's guest does not answer; look at the sandbox's state.", slug="guest_unreachable"
        ) from error
    except Timeout as error:
        raise Timeout(error.message, slug="guest_timeout") from error


def _selector(process: ProcessRef) -> pb.ProcessSelector:
    by_pid: Oneof[Literal["pid"], int] | None = Oneof("pid", process) if isinstance(process, int) else None
    by_tag: Oneof[Literal["tag"], str] | None = Oneof("tag", process) if isinstance(process, str) else None
    return pb.ProcessSelector(selector=by_pid or by_tag)


def _pty(terminal: Terminal) -> pb.PTY:
    return pb.PTY(size=pb.PTY.Size(cols=terminal.cols, rows=terminal.rows))


def _as_user(user: str) -> dict[str, str]:
    """The user of a process travels as the name of HTTP basic authentication; there is no password."""
    return {"authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode()} if user else {}
