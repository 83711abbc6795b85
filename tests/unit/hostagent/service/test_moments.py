from __future__ import annotations

from uuid import uuid4

import pytest

from tests.unit.hostagent.test_moments import opened
from tests.unit.hostagent.world import CAPABILITIES, FakeWorld, request
from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.hostagent import wire
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.service.moments import MomentCalls
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


def wanted(sandbox_id: str, build_id: str = "", **fields: object) -> pb.CreateSandboxRequest:
    return pb.CreateSandboxRequest(sandbox_id=sandbox_id, build_id=build_id, access_token="n" * 32, **fields)


def current(registry: Registry, sandbox_id: str) -> str:
    """What the agent says that a sandbox descends from."""
    return wire.sandbox_info(registry.get(SandboxId.parse(sandbox_id)), 0.0).current_build_id


def test_the_whole_way_over_messages(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry):
            calls, sb = MomentCalls(moments, CAPABILITIES), str((await registry.create(request())).request.id)
            assert current(registry, sb) == "", "a base template is nobody's moment"
            world.machines[0].stalled = "host_disk_full"
            assert wire.sandbox_info(registry.get(SandboxId.parse(sb)), 0.0).stalled == "host_disk_full"
            pause, build_id = pb.PauseSandboxRequest(sandbox_id=sb, build_id=str(uuid4())), ""
            answer = await calls.pause_sandbox(pause, None)
            assert answer.build is not None and current(registry, sb) == ""
            build_id = answer.build.build_id
            assert build_id == pause.build_id and answer.build.holders == [sb]
            assert (answer.build.vcpus, answer.build.memory_mb, answer.build.sandbox_id) == (1, 512, sb)
            assert answer.build.size_bytes > 0 and answer.build.durable_ms >= answer.build.captured_ms > 0
            resume = pb.ResumeSandboxRequest(sandbox_id=sb, sandbox=wanted(sb, build_id, template="named"))
            resumed = await calls.resume_sandbox(resume, None)
            assert resumed.status == "running" and resumed.host_ip and resumed.metadata["driver"] == "fake/none"
            assert current(registry, sb) == build_id
            template = str(uuid4())
            snapshot = pb.CreateSnapshotRequest(sandbox_id=sb, name="x", template_id=template, build_id=str(uuid4()))
            named = await calls.create_snapshot(snapshot, None)
            assert named.name == "x" and named.build is not None
            assert sorted(named.build.holders) == sorted([sb, f"tpl-{template}"])
            children = [wanted(f"sb-{uuid4()}") for _ in range(2)]
            fork = pb.ForkSandboxRequest(sandbox_id=sb, build_id=str(uuid4()), children=children)
            forked = await calls.fork_sandbox(fork, None)
            assert [child.sandbox_id for child in forked.children] == [child.sandbox_id for child in children]
            assert {current(registry, one.sandbox_id) for one in (*forked.children, fork)} == {fork.build_id}
            back = pb.RollbackSandboxRequest(sandbox_id=sb, build_id=named.build.build_id)
            assert (await calls.rollback_sandbox(back, None)).host_ip
            assert current(registry, sb) == named.build.build_id
            listed = (await calls.list_builds(pb.ListBuildsRequest(), None)).builds
            assert [build.build_id for build in listed] == [build_id, named.build.build_id, fork.build_id]
            await calls.delete_snapshot(pb.DeleteSnapshotRequest(template_id=template), None)
            assert await moments.holders(registry.get(registry.all()[0].request.id).build_id) == [sb]

    run(work)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("pause_sandbox", pb.PauseSandboxRequest(sandbox_id=f"sb-{uuid4()}", build_id="nope")),
        ("pause_sandbox", pb.PauseSandboxRequest(sandbox_id="nope", build_id=str(uuid4()))),
        ("resume_sandbox", pb.ResumeSandboxRequest(sandbox_id=f"sb-{uuid4()}")),
        ("resume_sandbox", pb.ResumeSandboxRequest(sandbox_id=f"sb-{uuid4()}", sandbox=wanted(f"sb-{uuid4()}"))),
        ("create_snapshot", pb.CreateSnapshotRequest(sandbox_id=f"sb-{uuid4()}", build_id=str(uuid4()))),
        ("delete_snapshot", pb.DeleteSnapshotRequest(template_id="00000000-0000-0000-0000-000000000000")),
        ("fork_sandbox", pb.ForkSandboxRequest(sandbox_id=f"sb-{uuid4()}", build_id=str(uuid4()))),
        ("rollback_sandbox", pb.RollbackSandboxRequest(sandbox_id=f"sb-{uuid4()}", build_id="../x")),
    ],
)
def test_what_cannot_be_meant_is_refused(world: FakeWorld, run, call: str, message: object) -> None:
    async def work() -> None:
        async with opened(world) as (moments, _):
            with pytest.raises(Invalid):
                await getattr(MomentCalls(moments, CAPABILITIES), call)(message, None)

    run(work)
