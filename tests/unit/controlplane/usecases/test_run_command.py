from __future__ import annotations

import asyncio
from contextlib import aclosing

from protobuf import Oneof

from tests.unit.controlplane.usecases.test_find_sandboxes import made
from wrenn_sandbox.controlplane.usecases.run_command import Command, run_command, start_background, stream_command
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

COMMAND = Command("sh", ("-c", "x"), {"A": "1"}, "/tmp", "user", b"in", 7)


def test_a_command_goes_out_whole_and_comes_back_whole(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["Exec"] = pb.ExecResponse(stdout=b"o", stderr=b"e", exit_code=3, truncated=True)
            outcome = await run_command(w.platform, w.team, row.id, COMMAND)
            assert (outcome.stdout, outcome.stderr, outcome.exit_code, outcome.truncated) == (b"o", b"e", 3, True)
            (sent,) = w.agent.requests("Exec")
            assert (sent.sandbox_id, sent.cmd, list(sent.args)) == (str(row.id), "sh", ["-c", "x"])
            assert (sent.cwd, sent.user, sent.stdin, sent.timeout_sec) == ("/tmp", "user", b"in", 7)

    asyncio.run(main())


def test_an_interrupted_command_never_looks_successful(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["Exec"] = pb.ExecResponse(stdout=b"half", interrupted="command_timeout")
            outcome = await run_command(w.platform, w.team, row.id, COMMAND)
            assert (outcome.exit_code, outcome.interrupted, outcome.stdout) == (-1, "command_timeout", b"half")

    asyncio.run(main())


def test_leaving_a_stream_early_closes_it(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            start = pb.ExecStreamResponse(event=Oneof("start", pb.ExecStreamStart(pid=5)))
            w.agent.answers["ExecStream"] = [start, ...]
            async with aclosing(stream_command(w.platform, w.team, row.id, COMMAND)) as events:
                assert await anext(events) == start
            assert w.agent.closed_streams == ["ExecStream"]

    asyncio.run(main())


def test_a_background_process_gets_a_tag(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["StartBackground"] = lambda request: pb.StartBackgroundResponse(pid=9, tag=request.tag)
            started = await start_background(w.platform, w.team, row.id, COMMAND, "")
            assert started.pid == 9 and started.tag.startswith("proc-") and len(started.tag) == 13
            assert (await start_background(w.platform, w.team, row.id, COMMAND, "mine")).tag == "mine"

    asyncio.run(main())
