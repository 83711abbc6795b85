from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from protobuf import Oneof

from wrenn_sandbox.core.errors import Invalid, NotFound, Timeout, Unauthenticated, Unavailable, WrennError
from wrenn_sandbox.hostagent import guest_processes as module
from wrenn_sandbox.hostagent.guest_processes import Command, GuestProcesses, Terminal
from wrenn_sandbox.rpc.gen.envd import process_pb as pb


@dataclass
class Channel:
    """Remembers requests; raises ``error`` when the stream is opened, or ``late`` at its second message."""

    error: WrennError | None = None
    late: WrennError | None = None
    seen: list[tuple[str, object, dict]] = field(default_factory=list)

    async def unary(self, method: str, request: object, answer: type, **options: object) -> object:
        self.seen.append((method, request, options))
        if self.error is not None:
            raise self.error
        return answer()

    @asynccontextmanager
    async def server_stream(self, method: str, request: object, answer: type, **options: object):
        self.seen.append((method, request, options))
        if self.error is not None:
            raise self.error
        yield self._messages(answer)

    async def _messages(self, answer: type):
        yield answer(event=pb.ProcessEvent(event=Oneof("start", pb.ProcessEvent.StartEvent(pid=5))))
        yield answer()
        if self.late is not None:
            raise self.late


def test_a_command_reaches_the_guest_whole(run) -> None:
    async def work() -> None:
        channel = Channel()
        command = Command("a", ("b",), {"K": "v"}, "/c", "root", "tag", Terminal(1, 2), stdin=True)
        async with GuestProcesses(channel).start(command, lifetime_s=3) as events:
            assert [event.event.field async for event in events] == ["start"]
        ((method, request, options),) = channel.seen
        assert method == "Start" and request == pb.StartRequest(
            process=pb.ProcessConfig(cmd="a", args=["b"], envs={"K": "v"}, cwd="/c"),
            pty=pb.PTY(size=pb.PTY.Size(cols=1, rows=2)),
            tag="tag",
            stdin=True,
        )
        assert options["timeout_s"] == 3
        assert options["headers"] == {"authorization": "Basic " + base64.b64encode(b"root:").decode()}

    run(work)


def test_what_is_not_given_is_not_sent(run) -> None:
    async def work() -> None:
        channel = Channel()
        async with GuestProcesses(channel).start(Command("a")):
            pass
        ((_, request, options),) = channel.seen
        assert not request.has_field("tag") and not request.has_field("pty") and not request.process.has_field("cwd")
        assert request.has_field("stdin") and request.stdin is False and options["headers"] == {}

    run(work)


@pytest.mark.parametrize(
    ("error", "kind", "slug"),
    [
        (Unauthenticated("invalid username"), Invalid, "invalid_user"),
        (NotFound("none"), NotFound, "process_not_found"),
        (Unavailable("broken", slug="peer_broken"), Unavailable, "guest_unreachable"),
        (Timeout("late"), Timeout, "guest_timeout"),
        (Invalid("cwd does not exist", slug="invalid_cwd"), Invalid, "invalid_cwd"),
    ],
)
def test_errors_are_ours_wherever_they_come(run, error: WrennError, kind: type[WrennError], slug: str) -> None:
    async def work() -> None:
        for channel in (Channel(error=error), Channel(late=error)):
            with pytest.raises(kind) as failed:
                async with GuestProcesses(channel).start(Command("a")) as events:
                    async for _ in events:
                        pass
            assert failed.value.slug == slug
        with pytest.raises(kind):
            await GuestProcesses(Channel(error=error)).signal(5, pb.Signal.SIGTERM)

    run(work)


def test_what_the_caller_raises_stays_the_callers(run) -> None:
    async def work() -> None:
        with pytest.raises(NotFound) as failed:
            async with GuestProcesses(Channel()).start(Command("a")):
                raise NotFound("of the caller's own", slug="own")
        assert failed.value.slug == "own"

    run(work)


def test_processes_are_named_by_pid_or_tag_and_input_goes_in_pieces(run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr(module, "INPUT_BYTES", 2)
        channel = Channel()
        processes = GuestProcesses(channel)
        await processes.send_input(7, b"abc")
        await processes.send_input("t", b"d", terminal=True)
        sent = [(request.process.selector, request.input.input) for _, request, _ in channel.seen]
        assert sent == [
            (Oneof("pid", 7), Oneof("stdin", b"ab")),
            (Oneof("pid", 7), Oneof("stdin", b"c")),
            (Oneof("tag", "t"), Oneof("pty", b"d")),
        ]

    run(work)


def test_connecting_asks_for_the_last_output(run) -> None:
    async def work() -> None:
        channel = Channel()
        async with GuestProcesses(channel).connect("t"):
            pass
        assert channel.seen[0][2]["headers"] == {"wrenn-replay": "1"}

    run(work)
