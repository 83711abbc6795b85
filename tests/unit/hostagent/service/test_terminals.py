from __future__ import annotations

import pytest
from protobuf import Oneof

from tests.unit.hostagent.service.fakes import CONTEXT, ID, KEEPALIVE, Processes, Registry, data, ended, started
from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.hostagent.guest_processes import Terminal
from wrenn_sandbox.hostagent.service.terminals import TerminalCalls
from wrenn_sandbox.rpc.gen.envd import process_pb
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

SCRIPT = [started(9), KEEPALIVE, data("pty", b"$ "), ended(1)]


async def attached(registry: Registry, **fields: object) -> list[object]:
    request = pb.PtyAttachRequest(sandbox_id=str(ID), **fields)
    return [answer.event async for answer in TerminalCalls(registry).pty_attach(request, CONTEXT)]


def test_a_new_terminal_has_size_tag_and_a_sane_environment(run) -> None:
    async def work() -> None:
        registry = Registry(Processes(SCRIPT))
        events = await attached(registry, cmd="sh", tag="t", cols=100, rows=40, envs={"LANG": "de", "A": "1"})
        assert events == [
            Oneof("started", pb.PtyStarted(pid=9, tag="t")),
            Oneof("output", pb.PtyOutput(data=b"$ ")),
            Oneof("exited", pb.PtyExited(exit_code=1, error="e")),
        ]
        command = registry.processes.calls[0][1]
        assert (command.terminal, command.tag, command.stdin) == (Terminal(100, 40), "t", True)
        assert command.envs == {"TERM": "xterm-256color", "LANG": "de", "LC_ALL": "C.UTF-8", "A": "1"}

    run(work)


def test_a_terminal_without_a_tag_is_given_one(run) -> None:
    async def work() -> None:
        registry = Registry(Processes(SCRIPT))
        tag = (await attached(registry, cmd="sh"))[0].value.tag
        assert tag.startswith("pty-") and registry.processes.calls[0][1].tag == tag

    run(work)


def test_attaching_needs_a_tag(run) -> None:
    async def work() -> None:
        registry = Registry(Processes(SCRIPT))
        await attached(registry, tag="t")
        assert registry.processes.calls == [("connect", "t")]
        with pytest.raises(Invalid):
            await attached(registry)

    run(work)


def test_type_resize_kill(run) -> None:
    async def work() -> None:
        registry = Registry()
        calls, name = TerminalCalls(registry), {"sandbox_id": str(ID), "tag": "t"}
        await calls.pty_send_input(pb.PtySendInputRequest(**name, data=b"x"), CONTEXT)
        await calls.pty_resize(pb.PtyResizeRequest(**name, cols=1, rows=2), CONTEXT)
        await calls.pty_kill(pb.PtyKillRequest(**name), CONTEXT)
        assert registry.processes.calls == [
            ("input", "t", b"x", True),
            ("resize", "t", Terminal(1, 2)),
            ("signal", "t", process_pb.Signal.SIGKILL),
        ]
        with pytest.raises(Invalid):
            await calls.pty_kill(pb.PtyKillRequest(sandbox_id=str(ID)), CONTEXT)

    run(work)
