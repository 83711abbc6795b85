from __future__ import annotations

import asyncio

import pytest

from tests.unit.hostagent.test_moments import opened
from tests.unit.hostagent.world import FakeWorld, request
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.hostagent.draining import drained


@pytest.mark.parametrize("kill", [False, True])
def test_a_host_comes_to_rest(world: FakeWorld, run, kill: bool) -> None:
    async def work() -> None:
        async with opened(world) as (_, registry):
            for _ in range(6):
                await registry.create(request())
            seen = [(p.total, p.done, p.failed) async for p in drained(registry, kill=kill, limit_s=30)]
            assert seen[0] == (6, 0, 0) and seen[-1] == (6, 6, 0)
            assert {s.state for s in registry.all()} == (set() if kill else {State.PAUSED})
            with pytest.raises(Unavailable):
                await registry.create(request())
        world.assert_nothing_left(builds=0 if kill else 6)

    run(work)


def test_what_cannot_be_paused_runs_on(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (_, registry):
            sandbox = await registry.create(request())
            world.script.fail_at, world.script.error = "machine.pause", lambda: Unavailable("no")
            seen = [(p.done, p.failed) async for p in drained(registry, kill=False, limit_s=30)]
            assert seen[-1] == (0, 1) and sandbox.state is State.RUNNING

    run(work)


def test_it_does_not_take_longer_than_allowed(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (_, registry):
            sandbox = await registry.create(request())
            world.script.hang_at = "machine.pause"
            seen = [(p.done, p.failed) async for p in drained(registry, kill=False, limit_s=0.05)]
            assert seen[-1] == (0, 1) and sandbox.is_living

    run(work)


def test_what_is_being_made_is_given_up(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with opened(world) as (_, registry), asyncio.TaskGroup() as group:
            world.script.hang_at = "guest.init"

            async def create() -> None:
                with pytest.raises(Exception, match="destroyed"):
                    await registry.create(request())

            group.create_task(create())
            await world.script.reached.wait()
            seen = [(p.done, p.failed) async for p in drained(registry, kill=False, limit_s=30)]
            assert seen[-1] == (1, 0)
        world.assert_nothing_left()

    run(work)
