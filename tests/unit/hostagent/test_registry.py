from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.unit.hostagent.world import FakeWorld, request
from wrenn_sandbox.core.errors import AlreadyExists, NotFound, Unavailable
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.hostagent import registry as module
from wrenn_sandbox.hostagent.registry import Registry


def opened(world: FakeWorld, group: asyncio.TaskGroup) -> Registry:
    registry = Registry(world.host(), group)
    registry.open()
    return registry


def test_a_sandbox_is_found_until_it_is_destroyed(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            registry = opened(world, group)
            wanted = request()
            sandbox = await registry.create(wanted)
            assert registry.get(wanted.id) is sandbox and list(registry.all()) == [sandbox]
            with pytest.raises(AlreadyExists):
                await registry.create(wanted)
            await registry.destroy(wanted.id)
            with pytest.raises(NotFound):
                registry.get(wanted.id)
            await registry.destroy(wanted.id)
        world.assert_nothing_left()

    run(work)


def test_one_whose_build_cannot_be_let_go_stays_listed_until_it_can(
    world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            registry = opened(world, group)
            sandbox = await registry.create(request())

            def fails(_: str) -> None:
                raise Unavailable("the disk is read-only", slug="disk_unavailable")

            with monkeypatch.context() as patch:
                patch.setattr(registry.host.builds.store, "release", fails)
                with pytest.raises(Unavailable):
                    await registry.destroy(sandbox.request.id)
                await sandbox.ended()
                await asyncio.sleep(0)
                assert [each.state for each in registry.all()] == [State.STOPPED]
            await registry.destroy(sandbox.request.id)
            assert registry.all() == []
        world.assert_nothing_left()

    run(work)


def test_what_failed_to_start_is_forgotten_and_its_id_free_again(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            registry = opened(world, group)
            wanted = request()
            world.script.fail_at = "machine.enter"
            world.script.error = lambda: Unavailable("no")
            with pytest.raises(Unavailable):
                await registry.create(wanted)
            await asyncio.sleep(0)
            assert list(registry.all()) == []
            world.script.fail_at = ""
            await registry.create(wanted)
            await registry.close(5)
        world.assert_nothing_left()

    run(work)


def test_a_caller_that_goes_away_takes_its_sandbox_along(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            registry = opened(world, group)
            world.script.hang_at = "guest.init"
            creating = group.create_task(registry.create(request()))
            await world.script.reached.wait()
            (sandbox,) = registry.all()
            creating.cancel()
            await sandbox.ended()
            await asyncio.sleep(0)
            assert list(registry.all()) == []
        world.assert_nothing_left()

    run(work)


def test_a_dead_one_stays_listed_until_destroyed_and_disturbs_no_other(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            registry = opened(world, group)
            first, second = request(), request()
            dead, alive = await registry.create(first), await registry.create(second)
            world.machines[0].die()
            await dead.ended()
            await asyncio.sleep(0)
            assert [s.state for s in registry.all()] == [State.ERROR, State.RUNNING]
            await registry.destroy(first.id)
            assert list(registry.all()) == [alive]
            await registry.close(5)
        world.assert_nothing_left()

    run(work)


def test_a_stopped_one_is_remembered_for_a_while(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            registry = opened(world, group)
            wanted = request()
            deadline = replace(wanted.spec.lifetime, ends_at_unix_s=1.0)
            sandbox = await registry.create(replace(wanted, spec=replace(wanted.spec, lifetime=deadline)))
            await sandbox.ended()
            await asyncio.sleep(0)
            assert [s.reason_slug for s in registry.all()] == ["deadline"]
            monkeypatch.setattr(module, "REMEMBER_S", -1.0)
            assert list(registry.all()) == []

    run(work)


def test_the_number_of_remembered_ends_is_bounded(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
        async with asyncio.TaskGroup() as group:
            registry = opened(world, group)
            for number in range(4):
                sandbox = await registry.create(request())
                world.machines[number].die()
                await sandbox.ended()
                await asyncio.sleep(0)
            assert len(list(registry.all())) == 2

    run(work)


def test_close_destroys_all_and_takes_no_more(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            registry = opened(world, group)
            for _ in range(5):
                await registry.create(request())
            await registry.close(5)
            world.assert_nothing_left()
            with pytest.raises(Unavailable) as refused:
                await registry.create(request())
            assert refused.value.slug == "agent_stopping"

    run(work)


def test_creates_wait_until_the_agent_has_cleared_up(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            registry = Registry(world.host(), group)
            creating = group.create_task(registry.create(request()))
            await asyncio.sleep(0)
            assert world.script.passed == []
            registry.open()
            await creating
            await registry.close(5)

    run(work)
