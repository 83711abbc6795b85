from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest

from tests.unit.hostagent.test_moments import opened
from tests.unit.hostagent.world import FakeWorld, abandoned, kept, request, running
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent import sandbox as sandbox_module
from wrenn_sandbox.hostagent import succession as module
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.steps import adopt as adopt_module
from wrenn_sandbox.hostagent.succession import leave, take_over


def test_running_and_paused_ones_are_there_again_and_rubbish_is_named(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            paused = (await kept(sandbox, Action.PAUSE)).build
        async with running(world) as living:
            build_id = (await kept(living, Action.SNAPSHOT)).build.id
            living.set_lifetime(living.timers.lifetime)
            await abandoned(world, living)
        (world.root / "run" / "sb-half-made").mkdir()
        (world.root / "data" / "builds" / f".{uuid4()}.new").mkdir()
        async with asyncio.TaskGroup() as group:
            registry = Registry(world.host(), group)
            left = await take_over(registry)
            assert [path.name for path in left] == ["sb-half-made"]
            states = {s.request.id: (s.state, s.build_id) for s in registry.all()}
            assert states == {
                sandbox.request.id: (State.PAUSED, paused.id),
                living.request.id: (State.RUNNING, build_id),
            }
            assert registry.get(living.request.id).request == living.request
            registry.open()
            await registry.complete()
            await registry.close(5)
            await journal.clear(left[0])
        world.assert_nothing_left(builds=2)

    run(work)


def test_one_whose_machine_went_meanwhile_is_an_error_with_its_last_build(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as living:
            build_id = (await kept(living, Action.SNAPSHOT)).build.id
            directory = await abandoned(world, living)
        (directory / "vmm" / "vmm.json").unlink()
        async with asyncio.TaskGroup() as group:
            registry = Registry(world.host(), group)
            assert await take_over(registry) == []
            await asyncio.sleep(0)
            (found,) = registry.all()
            assert (found.state, found.reason_slug, found.build_id) == (State.ERROR, "vmm_died", build_id)
        world.assert_nothing_left(builds=1)

    run(work)


def test_one_broken_build_and_one_broken_hold_are_one_sandbox_each(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            whole = (await kept(sandbox, Action.PAUSE)).build
        async with running(world) as other:
            broken = (await kept(other, Action.PAUSE)).build
        (broken.directory / "manifest.json").write_text("")
        (world.root / "data" / "holds" / f"sb-{uuid4()}").write_text("no build")
        async with asyncio.TaskGroup() as group:
            registry = Registry(world.host(), group)
            assert await take_over(registry) == []
            registry.open()
            states = {s.request.id: (s.state, s.build_id) for s in registry.all()}
            assert states == {
                sandbox.request.id: (State.PAUSED, whole.id),
                other.request.id: (State.PAUSED, broken.id),
            }
            with pytest.raises(Unavailable) as refused:
                await registry.resume(replace(request(build_id=broken.id), id=other.request.id))
            assert refused.value.slug == "build_broken" and registry.get(other.request.id).state is State.PAUSED
            await registry.resume(replace(request(build_id=whole.id), id=sandbox.request.id))
            await registry.close(5)
        assert len(list((world.root / "data" / "builds").iterdir())) == 2, "while a hold is unknown, nothing goes"

    run(work)


@pytest.mark.parametrize("machine", ["lives", "gone"])
def test_a_pause_that_was_durable_and_not_answered_is_one(world: FakeWorld, run, machine: str) -> None:
    async def work() -> None:
        async with running(world) as living:
            build = (await kept(living, Action.SNAPSHOT)).build
            directory = await abandoned(world, living)
        top = journal.overlays(directory)[-1]
        top.unlink()
        top.hardlink_to(build.disk)
        if machine == "gone":
            (directory / "vmm" / "vmm.json").unlink()
        world.machines.clear()
        async with asyncio.TaskGroup() as group:
            registry = Registry(world.host(), group)
            taking = group.create_task(take_over(registry))
            await registry.complete()
            (found,) = registry.all()
            seen = {found.state}
            await taking
            seen.add(found.state)
            assert (seen, found.build_id) == ({State.PAUSING, State.PAUSED}, build.id)
        world.assert_nothing_left(builds=1)

    run(work)


def test_what_a_machine_needs_is_kept_while_it_is_taken_over(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as living:
            build = (await kept(living, Action.SNAPSHOT)).build
            await abandoned(world, living)
        await world.builds.release(str(living.request.id))
        world.script.hang_at = "link.enter"
        async with asyncio.TaskGroup() as group:
            registry = Registry(world.host(), group)
            taking = group.create_task(take_over(registry))
            await world.script.reached.wait()
            assert world.reserved == {2}, "its network is nobody else's"
            claims = registry.host.builds.claims()
            assert build.id in claims.builds and living._host.builds.store.get(build.id)
            assert claims.memories == {world.root / "images" / "bases" / "1x512" / "memory"}
            await world.builds.collect()
            assert [each.id for each in world.store.all()] == [build.id]
            await registry.destroy(living.request.id)
            await taking
        await world.builds.collect()
        world.assert_nothing_left()

    run(work)


def test_a_machine_whose_record_cannot_be_read_is_left_alone_until_it_can(
    world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with running(world) as living:
            build = (await kept(living, Action.SNAPSHOT)).build
            directory = await abandoned(world, living)
        await world.builds.release(str(living.request.id))
        record, again = directory / journal.RECORD, asyncio.Event()
        whole = record.read_text()
        record.write_text(whole.replace('"version": 1', '"version": 99'))
        monkeypatch.setattr(journal, "vmm_lives", lambda _: True)
        monkeypatch.setattr(adopt_module, "_sleep", lambda _: again.wait())
        monkeypatch.setattr(module, "TAKE_OVER_LIMIT_S", 0.001)
        monkeypatch.setattr(sandbox_module, "TAKE_OVER_LIMIT_S", 0.001)
        async with asyncio.TaskGroup() as group:
            registry = Registry(world.host(), group)
            assert await take_over(registry) == []
            registry.open()
            (found,) = registry.all()
            assert (found.request.id, found.state, directory.exists()) == (living.request.id, State.RUNNING, True)
            assert world.reserved == {2} and [each.id for each in world.store.all()] == [build.id]
            with pytest.raises(Unavailable) as early:
                async with found.use():
                    pass
            assert early.value.slug == "agent_starting"
            record.write_text(whole)
            again.set()
            await found.started()
            assert found.request == living.request and found.timers.lifetime == living.timers.lifetime
            async with found.use() as parts:
                assert parts.directory == directory
            await registry.destroy(found.request.id)
        await world.builds.collect()
        world.assert_nothing_left()

    run(work)


def test_an_agent_that_leaves_waits_for_operations_and_gives_up_what_is_being_made(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry), asyncio.TaskGroup() as group:
            running_one = await registry.create(request())
            pausing = group.create_task(moments.pause(running_one.request.id, uuid4()))
            while running_one.state is not State.PAUSING:
                await asyncio.sleep(0)
            await leave(registry, 5)
            assert running_one.state is State.PAUSED
            await pausing

    run(work)
