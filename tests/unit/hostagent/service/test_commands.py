from __future__ import annotations

import asyncio

import pytest
from protobuf import Oneof

from tests.unit.hostagent.service.fakes import CONTEXT, ID, KEEPALIVE, Processes, Registry, data, ended, started
from wrenn_sandbox.core.errors import Bug, Invalid, NotFound, Timeout
from wrenn_sandbox.hostagent.service import commands as module
from wrenn_sandbox.hostagent.service.commands import CommandCalls
from wrenn_sandbox.rpc.gen.envd import process_pb
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

KILLED = ("signal", 9, process_pb.Signal.SIGKILL)


def request(**fields: object) -> pb.ExecRequest:
    return pb.ExecRequest(**({"sandbox_id": str(ID), "cmd": "x"} | fields))


def test_exec_collects_both_streams_and_the_exit_code(run) -> None:
    async def work() -> None:
        script = [started(9), data("stdout", b"a"), KEEPALIVE, data("stderr", b"e"), data("stdout", b"b"), ended(3)]
        registry = Registry(Processes(script))
        answer = await CommandCalls(registry).exec(request(envs={"A": "1"}, user="root"), CONTEXT)
        assert answer == pb.ExecResponse(stdout=b"ab", stderr=b"e", exit_code=3)
        ((_, command, lifetime_s),) = registry.processes.calls
        assert (command.envs, command.user, command.stdin, lifetime_s) == ({"A": "1"}, "root", False, 30.0)
        assert (registry.uses, registry.in_use) == (1, 0)

    run(work)


def test_output_is_kept_up_to_a_limit_a_stream(run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr(module, "MAX_OUTPUT_BYTES", 4)
        script = [started(9), data("stdout", b"abc"), data("stdout", b"def"), data("stdout", b"g"), ended(0)]
        answer = await CommandCalls(Registry(Processes(script))).exec(request(), CONTEXT)
        assert (answer.stdout, answer.truncated, answer.exit_code) == (b"abcd", True, 0)
        answer = await CommandCalls(Registry(Processes([started(9), data("stderr", b"abcd"), ended(0)]))).exec(
            request(), CONTEXT
        )
        assert (answer.stderr, answer.truncated) == (b"abcd", False)

    run(work)


@pytest.mark.parametrize("last", [Timeout("its time was up", slug="guest_timeout"), None])
def test_a_command_past_its_time_is_killed_and_answers_with_what_there_was(
    run, monkeypatch: pytest.MonkeyPatch, last: object
) -> None:
    async def work() -> None:
        monkeypatch.setattr(module, "GRACE_S", -0.99)
        registry = Registry(Processes([started(9), data("stdout", b"part"), last]))
        answer = await CommandCalls(registry).exec(request(timeout_sec=1), CONTEXT)
        assert (answer.stdout, answer.interrupted, answer.exit_code) == (b"part", "command_timeout", -1)
        assert registry.processes.calls[-1] == KILLED

    run(work)


def test_a_kill_that_comes_too_late_is_no_error(run) -> None:
    async def work() -> None:
        registry = Registry(Processes([started(9), Timeout("late")], error=NotFound("gone")))
        assert (await CommandCalls(registry).exec(request(), CONTEXT)).interrupted == "command_timeout"

    run(work)


def test_input_is_written_and_closed_and_its_failure_is_the_programs_affair(run) -> None:
    async def work() -> None:
        for error in (None, NotFound("it has ended")):
            registry = Registry(Processes([started(9), *[KEEPALIVE] * 5, ended(0)], error=error))
            answer = await CommandCalls(registry).exec(request(stdin=b"in"), CONTEXT)
            assert answer.exit_code == 0 and registry.processes.calls[0][1].stdin
            assert registry.processes.calls[1] == ("input", 9, b"in", False)
            assert (("close", 9) in registry.processes.calls) is (error is None)

    run(work)


def test_stream_events_pass_in_order_without_keepalives(run) -> None:
    async def work() -> None:
        registry = Registry(Processes([started(9), KEEPALIVE, data("stdout", b"a"), data("stderr", b"b"), ended(2)]))
        answers = [answer.event async for answer in CommandCalls(registry).exec_stream(request(), CONTEXT)]
        assert answers == [
            Oneof("start", pb.ExecStreamStart(pid=9)),
            Oneof("data", pb.ExecStreamData(output=Oneof("stdout", b"a"))),
            Oneof("data", pb.ExecStreamData(output=Oneof("stderr", b"b"))),
            Oneof("end", pb.ExecStreamEnd(exit_code=2, error="e")),
        ]
        assert registry.processes.calls[0][2] is None, "no limit unless one is asked for"

    run(work)


def test_a_stream_out_of_time_says_so(run) -> None:
    async def work() -> None:
        registry = Registry(Processes([started(9), Timeout("x")]))
        with pytest.raises(Timeout) as failed:
            async for _ in CommandCalls(registry).exec_stream(request(timeout_sec=7), CONTEXT):
                pass
        assert failed.value.slug == "command_timeout" and "7 s" in failed.value.message
        assert registry.in_use == 0

    run(work)


def test_leaving_a_stream_signals_nothing(run) -> None:
    async def work() -> None:
        registry = Registry(Processes([started(9), None]))
        stream = CommandCalls(registry).exec_stream(request(stdin=b"in"), CONTEXT)
        await anext(stream)
        assert registry.in_use == 1, "a stream that is open is a use"
        await stream.aclose()
        assert registry.in_use == 0
        assert [call[0] for call in registry.processes.calls if call[0] == "signal"] == []

    run(work)


def test_background_answers_with_the_pid(run) -> None:
    async def work() -> None:
        registry = Registry(Processes([started(9), None]))
        ask = pb.StartBackgroundRequest(sandbox_id=str(ID), cmd="x", tag="t")
        assert await CommandCalls(registry).start_background(ask, CONTEXT) == pb.StartBackgroundResponse(pid=9, tag="t")
        with pytest.raises(Bug):
            await CommandCalls(Registry(Processes([]))).start_background(ask, CONTEXT)

    run(work)


def test_list_kill_and_connect(run) -> None:
    async def work() -> None:
        registry = Registry(Processes([started(5), ended(0)]))
        calls = CommandCalls(registry)
        listed = await calls.list_processes(pb.ListProcessesRequest(sandbox_id=str(ID)), CONTEXT)
        assert listed.processes == [pb.ProcessEntry(pid=5, tag="t", cmd="a", args=["b"]), pb.ProcessEntry(pid=6)]
        for name, number in (("", 9), ("SIGKILL", 9), ("SIGTERM", 15)):
            kill = pb.KillProcessRequest(sandbox_id=str(ID), selector=Oneof("pid", 5), signal=name)
            await calls.kill_process(kill, CONTEXT)
            assert registry.processes.calls[-1] == ("signal", 5, process_pb.Signal(number))
        with pytest.raises(Invalid):
            await calls.kill_process(
                pb.KillProcessRequest(sandbox_id=str(ID), selector=Oneof("pid", 5), signal="SIGHUP"), CONTEXT
            )
        connect = pb.ConnectProcessRequest(sandbox_id=str(ID), selector=Oneof("tag", "t"))
        assert [a.event.field async for a in calls.connect_process(connect, CONTEXT)] == ["start", "end"]
        assert registry.processes.calls[-1] == ("connect", "t")

    run(work)


def test_unknown_sandboxes_and_bad_commands(run) -> None:
    async def work() -> None:
        calls = CommandCalls(Registry())
        with pytest.raises(NotFound):
            await calls.exec(request(sandbox_id="sb-99999999-2222-4333-8444-555555555555"), CONTEXT)
        for bad in (request(cmd=""), request(cwd="/a/../b"), request(timeout_sec=-1), request(sandbox_id="x")):
            with pytest.raises(Invalid):
                await calls.exec(bad, CONTEXT)

    run(work)


def test_a_cancelled_exec_signals_nothing(run) -> None:
    async def work() -> None:
        registry = Registry(Processes([started(9), None]))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(CommandCalls(registry).exec(request(), CONTEXT))
            while registry.in_use == 0:
                await asyncio.sleep(0)
            task.cancel()
        assert task.cancelled() and registry.in_use == 0 and len(registry.processes.calls) == 1

    run(work)
