from __future__ import annotations

import asyncio

import pytest
from protobuf import Oneof

from wrenn_sandbox.core.errors import Invalid, NotFound, Timeout
from wrenn_sandbox.hostagent.service.commands import MAX_OUTPUT_BYTES
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

pytestmark = pytest.mark.platform


def test_output_exit_code_environment_directory_and_input(run) -> None:
    async def work(client) -> None:
        async with client.sandbox(default_env={"SHARED": "s"}) as sb:
            script = 'cat; echo "$SHARED $OWN $PWD"; echo oops >&2; exit 7'
            answer = await client.exec(sb, "/bin/sh", "-c", script, envs={"OWN": "o"}, cwd="/tmp", stdin=b"in\n")
            assert (answer.stdout, answer.stderr, answer.exit_code) == (b"in\ns o /tmp\n", b"oops\n", 7)
            assert (answer.interrupted, answer.truncated) == ("", False)

    run(work)


def test_large_input_passes_and_input_that_nobody_reads_does_not_hang(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            data = b"0123456789abcdef" * 200_000
            answer = await client.exec(sb, "wc", "-c", stdin=data)
            assert answer.stdout.split() == [str(len(data)).encode()]
            assert (await client.exec(sb, "true", stdin=data)).exit_code == 0

    run(work)


def test_a_command_that_does_not_exist_is_exit_127(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            answer = await client.exec(sb, "no-such-program")
            assert answer.exit_code == 127 and b"no-such-program" in answer.stderr
            with pytest.raises(Invalid):
                await client.exec(sb, "true", cwd="/no/such/directory")
            with pytest.raises(Invalid) as unknown:
                await client.exec(sb, "true", user="nosuchuser")
            assert unknown.value.slug == "invalid_user"

    run(work)


def test_a_command_that_takes_too_long_is_ended_and_its_output_kept(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            answer = await client.exec(sb, "/bin/sh", "-c", "echo part; sleep 600 & sleep 600", timeout_sec=1)
            assert (answer.stdout, answer.interrupted, answer.exit_code) == (b"part\n", "command_timeout", -1)
            found = await client.exec(
                sb, "/bin/sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 600'"
            )
            left = await client.channel.unary(
                "ListProcesses", pb.ListProcessesRequest(sandbox_id=sb), pb.ListProcessesResponse
            )
            assert list(left.processes) == [] and found.stdout is not None

    run(work)


def test_output_above_the_limit_is_cut_and_said_so(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            answer = await client.exec(sb, "head", "-c", str(MAX_OUTPUT_BYTES + 5), "/dev/zero")
            assert (len(answer.stdout), answer.truncated, answer.exit_code) == (MAX_OUTPUT_BYTES, True, 0)
            answer = await client.exec(sb, "head", "-c", str(MAX_OUTPUT_BYTES), "/dev/zero")
            assert (len(answer.stdout), answer.truncated) == (MAX_OUTPUT_BYTES, False)

    run(work)


def test_a_stream_has_start_output_and_end_in_order(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            script = "read line; echo got $line; sleep 0.1; echo err >&2; exit 3"
            request = pb.ExecRequest(sandbox_id=sb, cmd="/bin/sh", args=["-c", script], stdin=b"it\n")
            async with client.channel.server_stream("ExecStream", request, pb.ExecStreamResponse) as events:
                seen = [event.event async for event in events]
            assert seen[0].field == "start" and seen[0].value.pid > 0
            assert [event.value.output for event in seen[1:-1]] == [
                Oneof("stdout", b"got it\n"),
                Oneof("stderr", b"err\n"),
            ]
            assert (seen[-1].field, seen[-1].value.exit_code) == ("end", 3)

    run(work)


def test_a_stream_past_its_time_ends_with_command_timeout(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            request = pb.ExecRequest(sandbox_id=sb, cmd="/bin/sh", args=["-c", "echo a; sleep 600"], timeout_sec=1)
            seen = []
            with pytest.raises(Timeout) as late:
                async with client.channel.server_stream("ExecStream", request, pb.ExecStreamResponse) as events:
                    async for event in events:
                        seen.append(event.event.field)
            assert late.value.slug == "command_timeout" and seen == ["start", "data"]

    run(work)


async def processes(client, sb: str) -> dict[int, str]:
    answer = await client.channel.unary(
        "ListProcesses", pb.ListProcessesRequest(sandbox_id=sb), pb.ListProcessesResponse
    )
    return {entry.pid: entry.tag for entry in answer.processes}


def test_leaving_a_stream_leaves_the_program_and_it_can_be_found_again(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            request = pb.ExecRequest(
                sandbox_id=sb, cmd="/bin/sh", args=["-c", "echo first; read x < /dev/zero; sleep 600"]
            )
            async with client.channel.server_stream("ExecStream", request, pb.ExecStreamResponse) as events:
                pid = (await anext(events)).event.value.pid
                assert (await anext(events)).event.value.output.value == b"first\n"
            assert list(await processes(client, sb)) == [pid]
            connect = pb.ConnectProcessRequest(sandbox_id=sb, selector=Oneof("pid", pid))
            async with client.channel.server_stream("ConnectProcess", connect, pb.ExecStreamResponse) as events:
                assert (await anext(events)).event.value.pid == pid
                assert (await anext(events)).event.value.output.value == b"first\n", "the last output comes again"
                kill = pb.KillProcessRequest(sandbox_id=sb, selector=Oneof("pid", pid))
                await client.channel.unary("KillProcess", kill, pb.KillProcessResponse)
                rest = [event.event async for event in events]
            assert (rest[-1].field, rest[-1].value.exit_code) == ("end", -1)
            assert await processes(client, sb) == {}

    run(work)


def test_background_processes_by_tag(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            start = pb.StartBackgroundRequest(sandbox_id=sb, cmd="sleep", args=["600"], tag="bg")
            begun = await client.channel.unary("StartBackground", start, pb.StartBackgroundResponse)
            assert begun.tag == "bg" and await processes(client, sb) == {begun.pid: "bg"}
            bad = pb.KillProcessRequest(sandbox_id=sb, selector=Oneof("tag", "bg"), signal="SIGSEGV")
            with pytest.raises(Invalid):
                await client.channel.unary("KillProcess", bad, pb.KillProcessResponse)
            good = pb.KillProcessRequest(sandbox_id=sb, selector=Oneof("tag", "bg"), signal="SIGTERM")
            await client.channel.unary("KillProcess", good, pb.KillProcessResponse)
            async with asyncio.timeout(10):
                while await processes(client, sb):
                    await asyncio.sleep(0.02)
            with pytest.raises(NotFound) as gone:
                await client.channel.unary("KillProcess", good, pb.KillProcessResponse)
            assert gone.value.slug == "process_not_found"

    run(work)


def test_a_terminal_is_typed_into_resized_left_and_found_again(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            attach = pb.PtyAttachRequest(sandbox_id=sb, tag="t", cmd="/bin/sh", cols=40, rows=10)
            async with client.channel.server_stream("PtyAttach", attach, pb.PtyAttachResponse) as events:
                assert (await anext(events)).event.value.tag == "t"
                resize = pb.PtyResizeRequest(sandbox_id=sb, tag="t", cols=99, rows=33)
                await client.channel.unary("PtyResize", resize, pb.PtyResizeResponse)
                await type_in(client, sb, b"stty size\n")
                assert b"33 99" in await shown(events, b"33 99")
            again = pb.PtyAttachRequest(sandbox_id=sb, tag="t")
            async with client.channel.server_stream("PtyAttach", again, pb.PtyAttachResponse) as events:
                await anext(events)
                assert b"33 99" in await shown(events, b"33 99"), "the last output comes again"
                await type_in(client, sb, b"exit 4\n")
                rest = [event.event async for event in events]
            assert (rest[-1].field, rest[-1].value.exit_code) == ("exited", 4)

    run(work)


def test_a_terminal_is_killed(run) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            attach = pb.PtyAttachRequest(sandbox_id=sb, cmd="/bin/sh")
            async with client.channel.server_stream("PtyAttach", attach, pb.PtyAttachResponse) as events:
                tag = (await anext(events)).event.value.tag
                await client.channel.unary("PtyKill", pb.PtyKillRequest(sandbox_id=sb, tag=tag), pb.PtyKillResponse)
                assert [event.event.field async for event in events][-1] == "exited"

    run(work)


async def type_in(client, sb: str, data: bytes) -> None:
    request = pb.PtySendInputRequest(sandbox_id=sb, tag="t", data=data)
    await client.channel.unary("PtySendInput", request, pb.PtySendInputResponse)


async def shown(events, wanted: bytes) -> bytes:
    text = b""
    while wanted not in text:
        text += (await anext(events)).event.value.data
    return text
