from __future__ import annotations

import asyncio
import os
import signal
import time
from uuid import uuid4

import aiohttp
import pytest

from tests.platform.hostagent.conftest import TOKEN, vmm_pid
from wrenn_sandbox.core.errors import (
    AlreadyExists,
    Conflict,
    Invalid,
    NotFound,
    Unauthenticated,
    WrennError,
)
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

TimeoutAction = pb.TimeoutAction

pytestmark = pytest.mark.platform


def test_a_sandbox_from_its_making_to_its_end(run, agent) -> None:
    async def work(client) -> None:
        created = await client.create(vcpus=3, memory_mb=300)
        assert (created.status, created.vcpus, created.memory_mb) == ("running", 4, 512)
        assert [phase.name for phase in created.phases] == ["reserve", "template", "prepare", "turn", "restore", "init"]
        info = (await client.listed())[created.sandbox_id]
        assert (info.status, info.host_ip, info.progress) == ("running", created.host_ip, "")
        assert (await client.exec(created.sandbox_id, "echo", "hi")).stdout == b"hi\n"
        with pytest.raises(AlreadyExists):
            await client.create(sandbox_id=created.sandbox_id)
        await client.destroy(created.sandbox_id)
        assert await client.listed() == {} and list((agent.data_dir / "run").iterdir()) == []
        await client.destroy(created.sandbox_id)
        with pytest.raises(NotFound) as gone:
            await client.exec(created.sandbox_id, "true")
        assert gone.value.slug == "sandbox_not_found"

    run(work)


def test_twenty_at_once(run) -> None:
    async def work(client) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.create()) for _ in range(20)]
        created = [task.result() for task in tasks]
        assert len({one.host_ip for one in created}) == 20
        async with asyncio.TaskGroup() as group:
            for one in created:
                group.create_task(client.destroy(one.sandbox_id))
        assert await client.listed() == {}

    run(work)


@pytest.mark.parametrize(
    ("fields", "slug"),
    [
        ({"vcpus": 10_000}, "invalid_size"),
        ({"memory_mb": -1}, "invalid_size"),
        ({"sandbox_id": "../../../etc"}, "invalid_id"),
        ({"template": "nope"}, "template_not_found"),
        ({"access_token": ""}, "invalid_access_token"),
        ({"network": pb.NetworkPolicy(allow_out=["nope"])}, "invalid_network"),
    ],
)
def test_bad_creates_are_typed_and_make_nothing(run, agent, fields: dict, slug: str) -> None:
    async def work(client) -> None:
        with pytest.raises(Invalid) as refused:
            await client.create(**fields)
        assert refused.value.slug == slug
        assert await client.listed() == {} and list((agent.data_dir / "run").glob("sb-*")) == []

    run(work)


def test_a_dead_vmm_is_an_error_with_a_reason_and_disturbs_no_other(run, agent) -> None:
    async def work(client) -> None:
        dead, alive = await client.create(), await client.create()
        request = pb.ExecRequest(sandbox_id=dead.sandbox_id, cmd="sleep", args=["600"])
        with pytest.raises(Conflict) as broken:
            async with client.channel.server_stream("ExecStream", request, pb.ExecStreamResponse) as events:
                await anext(events)
                os.kill(vmm_pid(agent, dead.sandbox_id), signal.SIGKILL)
                async for _ in events:
                    pass
        assert broken.value.slug == "vmm_died"
        info = await client.ended(dead.sandbox_id, limit_s=5)
        assert (info.status, info.reason_slug) == ("error", "vmm_died") and info.reason
        assert not (agent.data_dir / "run" / dead.sandbox_id).exists()
        assert (await client.exec(alive.sandbox_id, "echo", "still")).stdout == b"still\n"
        with pytest.raises(Conflict):
            await client.exec(dead.sandbox_id, "true")
        await client.destroy(dead.sandbox_id)
        assert list(await client.listed()) == [alive.sandbox_id]

    run(work)


@pytest.mark.parametrize(("action", "state"), [(TimeoutAction.KILL, "stopped"), (TimeoutAction.PAUSE, "paused")])
def test_idle_timeout_counts_only_while_nothing_runs(run, action: TimeoutAction, state: str) -> None:
    async def work(client) -> None:
        created = await client.create(lifetime=pb.Lifetime(idle_timeout_s=1, idle_action=action))
        sb = created.sandbox_id
        request = pb.ExecRequest(sandbox_id=sb, cmd="sleep", args=["3"])
        async with client.channel.server_stream("ExecStream", request, pb.ExecStreamResponse) as events:
            assert [event.event.field async for event in events] == ["start", "end"]
        info = await client.ended(sb)
        assert (info.status, info.reason_slug) == (state, "idle_timeout")
        assert list(await client.builds()) == ([info.build_id] if state == "paused" else [])

    run(work)


def test_ping_and_set_lifetime(run) -> None:
    async def work(client) -> None:
        sb = (await client.create(lifetime=pb.Lifetime(idle_timeout_s=3600))).sandbox_id
        await client.channel.unary("PingSandbox", pb.PingSandboxRequest(sandbox_id=sb), pb.PingSandboxResponse)
        limits = pb.Lifetime(idle_timeout_s=3600, ends_at_unix=time.time() + 0.5)
        request = pb.SetLifetimeRequest(sandbox_id=sb, lifetime=limits)
        await client.channel.unary("SetLifetime", request, pb.SetLifetimeResponse)
        info = await client.ended(sb)
        assert (info.status, info.reason_slug) == ("stopped", "deadline")
        with pytest.raises(Conflict):
            await client.channel.unary("PingSandbox", pb.PingSandboxRequest(sandbox_id=sb), pb.PingSandboxResponse)

    run(work)


def test_a_create_whose_caller_leaves_is_undone(run, agent) -> None:
    async def work(client) -> None:
        async with asyncio.TaskGroup() as group:
            creating = group.create_task(client.create())
            while not list((agent.data_dir / "run").glob("sb-*")):
                await asyncio.sleep(0.001)
            creating.cancel()
        async with asyncio.timeout(20):
            while await client.listed():
                await asyncio.sleep(0.02)
        assert list((agent.data_dir / "run").iterdir()) == []

    run(work)


def test_get_host(run) -> None:
    async def work(client) -> None:
        async with client.sandbox():
            host = await client.channel.unary("GetHost", pb.GetHostRequest(), pb.GetHostResponse)
        assert (host.driver, host.accelerated, host.running) == ("fake/none", False, 1)
        assert host.memory_mb > 0 and host.disk_free_mb > 0 and list(host.vcpu_choices) == [1, 2, 4, 8]
        assert ("base", 1, 512, "ready") in [(t.name, t.vcpus, t.memory_mb, t.status) for t in host.templates]

    run(work)


def test_nothing_is_answered_without_the_token(run, agent) -> None:
    async def work(client) -> None:
        async with aiohttp.ClientSession() as stranger:
            for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}):
                for path in ("/hostagent.v1.HostAgentService/GetHost", f"/proxy/sb-{uuid4()}/80/", "/"):
                    async with stranger.post(agent.url + path, headers=headers) as answer:
                        assert answer.status == 401
        client.channel._headers["authorization"] = "Bearer wrong"
        with pytest.raises(Unauthenticated):
            await client.listed()

    run(work)


def test_errors_never_show_a_traceback(run, agent) -> None:
    async def work(client) -> None:
        async with client.sandbox():
            pass  # the start-up sweep is over
        (agent.data_dir / "run").rmdir()
        try:
            with pytest.raises(WrennError) as failed:
                await client.create()
        finally:
            (agent.data_dir / "run").mkdir()
        assert failed.value.slug == "internal_error" and "reference" in failed.value.message
        reference = failed.value.message.rsplit(" ", 1)[-1].rstrip(".")
        assert reference in agent.log()

    run(work)
