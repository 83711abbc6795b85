"""Pause, resume, snapshot, fork and roll back as callers see them, over fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from tests.unit.hostagent.world import FakeWorld, HostFigures, poke, request
from wrenn_sandbox.core.errors import AlreadyExists, Conflict, Exhausted, NotFound, Unavailable
from wrenn_sandbox.core.ids import TemplateId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.hostagent.moments import Moments
from wrenn_sandbox.hostagent.registry import Registry


@asynccontextmanager
async def opened(world: FakeWorld) -> AsyncIterator[tuple[Moments, Registry]]:
    async with asyncio.TaskGroup() as group:
        registry = Registry(world.host(), group)
        registry.open()
        yield Moments(registry, group), registry
        await registry.close(5)


def test_a_pause_may_be_repeated_and_its_caller_may_leave(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry), asyncio.TaskGroup() as group:
            sandbox, build_id = await registry.create(request()), uuid4()
            leaving = group.create_task(moments.pause(sandbox.request.id, build_id))
            joining = group.create_task(moments.pause(sandbox.request.id, build_id))
            while sandbox.state is not State.PAUSING:
                await asyncio.sleep(0)
            leaving.cancel()
            assert (await joining).build.id == build_id
            again = await moments.pause(sandbox.request.id, uuid4())
            assert again.build.id == build_id, "of one that is paused, the build it is in"
            assert registry.get(sandbox.request.id).state is State.PAUSED
        world.assert_nothing_left(builds=1)

    run(work)


def test_a_resume_goes_on_and_a_failed_one_changes_nothing(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry):
            sandbox = await registry.create(request())
            sandbox_id = sandbox.request.id
            build_id = (await moments.pause(sandbox_id, uuid4())).build.id
            wanted = request(build_id=build_id)
            object.__setattr__(wanted, "id", sandbox_id)
            world.script.fail_at, world.script.error = "guest.init", lambda: Unavailable("no")
            with pytest.raises(Unavailable):
                await moments.resume(wanted)
            await asyncio.sleep(0)
            assert registry.get(sandbox_id).state is State.PAUSED and registry.get(sandbox_id).build_id == build_id
            world.script.fail_at = ""
            resumed = await moments.resume(wanted)
            assert resumed.state is State.RUNNING and resumed.build_id == build_id
            assert await moments.resume(wanted) is resumed
            assert world.store.held() == {str(sandbox_id): build_id}
            await registry.destroy(sandbox_id)
            assert world.store.held() == {}
            await world.builds.collect()
        world.assert_nothing_left()

    run(work)


def test_a_destroy_ends_a_resume_and_the_pause_it_came_from(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry), asyncio.TaskGroup() as group:
            sandbox_id = (await registry.create(request())).request.id
            wanted = request(build_id=(await moments.pause(sandbox_id, uuid4())).build.id)
            object.__setattr__(wanted, "id", sandbox_id)
            world.script.hang_at = "guest.init"
            resuming = group.create_task(_failing(moments.resume(wanted)))
            await world.script.reached.wait()
            assert registry.get(sandbox_id).state is State.RESUMING
            await registry.destroy(sandbox_id)
            assert isinstance(await resuming, Conflict)
            with pytest.raises(NotFound):
                registry.get(sandbox_id)
            assert world.store.held() == {}

    run(work)


async def _failing(work) -> Exception:
    try:
        await work
    except Exception as error:
        return error
    raise AssertionError("it worked")


def test_a_named_snapshot_of_a_running_and_of_a_paused_sandbox(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry):
            sandbox_id = (await registry.create(request())).request.id
            first, second, third = (TemplateId(uuid4()) for _ in range(3))
            made = await moments.snapshot(sandbox_id, uuid4(), first)
            again = await moments.snapshot(sandbox_id, uuid4(), first)
            assert again.build.id == made.build.id and registry.get(sandbox_id).state is State.RUNNING
            left = await moments.snapshot(sandbox_id, uuid4(), second, leave_paused=True)
            assert registry.get(sandbox_id).state is State.PAUSED
            same = await moments.snapshot(sandbox_id, uuid4(), third)
            assert same.build.id == left.build.id
            assert await moments.holders(left.build.id) == sorted([str(sandbox_id), str(second), str(third)])
            await registry.destroy(sandbox_id)
            await moments.forget(second)
            await moments.forget(second)
            child = await registry.create(request(build_id=left.build.id))
            await moments.forget(third)
            await moments.forget(first)
            await world.builds.collect()
            found, held = await moments.inventory()
            # The child's build goes back to the first one's, in memory and on disk.
            assert {build.id for build in found} == {left.build.id, made.build.id} and held == {}
            await registry.destroy(child.request.id)
            await world.builds.collect()
        world.assert_nothing_left()

    run(work)


def test_a_fork_makes_all_children_and_keeps_their_build(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry):
            source, build_id = await registry.create(request()), uuid4()
            poke(world, 11, b"shared")
            wanted = [request() for _ in range(3)]
            made, children = await moments.fork(source.request.id, build_id, wanted)
            assert source.state is State.RUNNING and made.build.id == build_id
            assert [child.request.id for child in children] == [one.id for one in wanted]
            for machine in world.machines[1:]:
                assert machine.memory is not None and machine.memory[11 * 4096 : 11 * 4096 + 6] == b"shared"
            tokens = {guest.known_tokens[0] for guest in world.guests[1:]}
            assert tokens == {source.request.spec.access_token}
            assert len({guest.identities[0].machine_id for guest in world.guests}) == 4
            again, same = await moments.fork(source.request.id, build_id, wanted)
            assert again.build.id == build_id and same == children
            with pytest.raises(AlreadyExists):
                await moments.fork(source.request.id, uuid4(), [request(), wanted[0]])
            await registry.destroy(source.request.id)
            await world.builds.collect()
            assert world.capacity.room().sandboxes == 3 and len(world.store.all()) == 1
        await world.builds.collect()
        world.assert_nothing_left()

    run(work)


def test_a_fork_of_a_paused_sandbox_takes_its_build(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry):
            source = (await registry.create(request())).request.id
            paused = await moments.pause(source, uuid4())
            made, _ = await moments.fork(source, uuid4(), [request()])
            assert made.build.id == paused.build.id and registry.get(source).state is State.PAUSED

    run(work)


@pytest.mark.parametrize("point", ["machine.pause", "machine.snapshot", "link.enter", "machine.enter", "guest.init"])
def test_a_fork_that_fails_makes_none(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry):
            source = await registry.create(request())
            world.script.fail_at, world.script.error = point, lambda: Unavailable("no")
            with pytest.raises(Unavailable):
                await moments.fork(source.request.id, uuid4(), [request() for _ in range(3)])
            world.script.fail_at = ""
            await asyncio.sleep(0)
            assert registry.all() == [source] and source.state is State.RUNNING and world.machines[0].running
            assert world.capacity.room().sandboxes == 1
            await moments.pause(source.request.id, uuid4())

    run(work)


def test_a_fork_whose_children_failed_is_repeated_from_the_moment_it_took(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry):
            source, build_id = await registry.create(request()), uuid4()
            poke(world, 3, b"then")
            world.script.fail_at, world.script.error = "guest.init", lambda: Unavailable("no")
            with pytest.raises(Unavailable):
                await moments.fork(source.request.id, build_id, [request()])
            world.script.fail_at = ""
            kept, (child,) = await moments.fork(source.request.id, build_id, [request()])
            assert kept.build.id == build_id == child.request.build_id
            memory = world.machines[-1].memory
            assert memory is not None and memory[3 * 4096 : 3 * 4096 + 4] == b"then"

    run(work)


def test_a_fork_without_room_for_all_begins_nothing(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry):
            source = await registry.create(request())
            world.figures = HostFigures(64_000, 6_400 + 2 * 352 + 352, 500_000, 400_000)
            with pytest.raises(Exhausted) as full:
                await moments.fork(source.request.id, uuid4(), [request() for _ in range(3)])
            assert full.value.slug == "host_full" and "machine.pause" not in world.script.passed
            await moments.fork(source.request.id, uuid4(), [request() for _ in range(2)])

    run(work)


def test_a_roll_back_needs_a_build(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (moments, registry):
            sandbox = await registry.create(request())
            with pytest.raises(NotFound):
                await moments.rollback(sandbox.request.id, UUID(int=1))
            made = await moments.snapshot(sandbox.request.id, uuid4(), TemplateId(uuid4()))
            assert await moments.rollback(sandbox.request.id, made.build.id) is sandbox

    run(work)
