from __future__ import annotations

import asyncio

import pytest

from tests.unit.controlplane.usecases.test_find_sandboxes import made
from wrenn_sandbox.controlplane.usecases.steer_processes import (
    Process,
    Signal,
    follow_process,
    kill_process,
    list_processes,
    select,
)
from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        *(("7", "pid", 7), ("4294967295", "pid", 4294967295), ("4294967296", "tag", "4294967296")),
        *(("a1", "tag", "a1"), ("-1", "tag", "-1"), ("٣", "tag", "٣")),
    ],
)
def test_a_number_of_32_bits_is_a_pid(text: str, field: str, value: object) -> None:
    selector = select(text)
    assert (selector.field, selector.value) == (field, value)


@pytest.mark.parametrize("text", ["", "x" * 129, "a\0"])
def test_what_can_be_no_tag_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        select(text)


def test_processes_are_listed_killed_and_followed(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            entry = pb.ProcessEntry(pid=3, tag="t", cmd="sleep", args=["1"])
            w.agent.answers["ListProcesses"] = pb.ListProcessesResponse(processes=[entry])
            assert await list_processes(w.platform, w.team, row.id) == [Process(3, "t", "sleep", ("1",))]
            await kill_process(w.platform, w.team, row.id, select("t"), Signal.SIGTERM)
            (sent,) = w.agent.requests("KillProcess")
            assert sent.selector.value == "t" and sent.signal == "SIGTERM"
            assert [e async for e in follow_process(w.platform, w.team, row.id, select("3"))] == []
            assert w.agent.requests("ConnectProcess")[0].selector.value == 3

    asyncio.run(main())
