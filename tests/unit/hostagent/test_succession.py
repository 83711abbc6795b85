from __future__ import annotations

import asyncio
from uuid import uuid4

from tests.unit.hostagent.test_moments import opened
from tests.unit.hostagent.world import FakeWorld, abandoned, kept, request, running
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.registry import Registry
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
