from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.unit.hostagent.world import CAPABILITIES, FakeWorld
from wrenn_sandbox.core.errors import Conflict, Invalid, NotFound
from wrenn_sandbox.core.spec import DEFAULT_SHAPE
from wrenn_sandbox.hostagent import wire
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.service.lifecycle import LifecycleCalls
from wrenn_sandbox.hostagent.templates import Status
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


class Templates:
    def statuses(self) -> list[Status]:
        return [Status(DEFAULT_SHAPE, "failed", "it did not boot")]


def calls(world: FakeWorld, group: asyncio.TaskGroup) -> tuple[LifecycleCalls, Registry]:
    registry = Registry(world.host(), group)
    registry.open()
    return LifecycleCalls(registry, Templates(), world.capacity, CAPABILITIES), registry


def create(**fields: object) -> pb.CreateSandboxRequest:
    wanted = {"sandbox_id": f"sb-{uuid4()}", "access_token": "t" * 32, "vcpus": 3, "memory_mb": 300} | fields
    return pb.CreateSandboxRequest(**wanted)


def test_create_list_destroy(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            service, _ = calls(world, group)
            made = await service.create_sandbox(create(lifetime=pb.Lifetime(idle_timeout_s=9)), None)
            assert (made.status, made.vcpus, made.memory_mb, made.host_ip) == ("running", 4, 512, "10.11.0.2")
            assert [phase.name for phase in made.phases][-1] == "init"
            assert made.metadata["driver"] == "fake/none"
            (info,) = (await service.list_sandboxes(pb.ListSandboxesRequest(), None)).sandboxes
            assert (info.sandbox_id, info.status, info.reason_slug) == (made.sandbox_id, "running", "")
            assert (info.vcpus, info.memory_mb, info.timeout_sec) == (4, 512, 9)
            assert info.lifetime.idle_action is pb.TimeoutAction.PAUSE
            await service.destroy_sandbox(pb.DestroySandboxRequest(sandbox_id=made.sandbox_id), None)
            assert (await service.list_sandboxes(pb.ListSandboxesRequest(), None)).sandboxes == []
        world.assert_nothing_left()

    run(work)


def test_a_waiting_create_says_what_it_waits_for(world: FakeWorld, run) -> None:
    async def work() -> None:
        world.script.hang_at = "template"
        async with asyncio.TaskGroup() as group:
            service, registry = calls(world, group)
            creating = group.create_task(service.create_sandbox(create(), None))
            await world.script.reached.wait()
            (info,) = (await service.list_sandboxes(pb.ListSandboxesRequest(), None)).sandboxes
            assert (info.status, info.progress) == ("starting", "preparing")
            creating.cancel()
            await registry.close(5)

    run(work)


def test_ping_and_lifetime_need_a_running_sandbox(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            service, registry = calls(world, group)
            made = await service.create_sandbox(create(), None)
            ping = pb.PingSandboxRequest(sandbox_id=made.sandbox_id)
            await service.ping_sandbox(ping, None)
            limits = pb.SetLifetimeRequest(sandbox_id=made.sandbox_id, lifetime=pb.Lifetime(idle_timeout_s=5))
            await service.set_lifetime(limits, None)
            (sandbox,) = registry.all()
            assert sandbox.timers.lifetime.idle_timeout_s == 5
            with pytest.raises(Invalid):
                bad = pb.SetLifetimeRequest(sandbox_id=made.sandbox_id, lifetime=pb.Lifetime(idle_timeout_s=-1))
                await service.set_lifetime(bad, None)
            world.machines[0].die()
            await sandbox.ended()
            for call in (service.ping_sandbox(ping, None), service.set_lifetime(limits, None)):
                with pytest.raises(Conflict):
                    await call
            with pytest.raises(NotFound):
                await service.ping_sandbox(pb.PingSandboxRequest(sandbox_id=f"sb-{uuid4()}"), None)
            with pytest.raises(Invalid):
                await service.destroy_sandbox(pb.DestroySandboxRequest(sandbox_id="nope"), None)

    run(work)


def test_the_host_says_what_it_is_and_has(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            service, registry = calls(world, group)
            await service.create_sandbox(create(), None)
            host = await service.get_host(pb.GetHostRequest(), None)
            assert (host.driver, host.running, host.memory_mb, host.disk_free_mb) == ("fake/none", 1, 64_000, 400_000)
            assert host.templates == [
                pb.BaseTemplate(name="base", vcpus=1, memory_mb=512, status="failed", detail="it did not boot")
            ]
            await registry.close(5)
        assert wire.driver_name(CAPABILITIES) == "fake/none"

    run(work)
