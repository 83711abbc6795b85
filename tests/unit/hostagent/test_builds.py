from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.unit.hostagent.world import FakeWorld, kept, poke, running
from wrenn_sandbox.core.errors import Conflict, NotFound, Unavailable
from wrenn_sandbox.core.ids import TemplateId
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent import builds as module


async def until(holds) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def test_a_build_that_is_to_be_cloned_gets_a_flat_memory_behind(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox, asyncio.TaskGroup() as group:
            poke(world, 1, b"changed")
            made = (await kept(sandbox, Action.SNAPSHOT)).build
            working = group.create_task(world.builds.work())
            world.builds.improve_behind(made.id)
            await asyncio.sleep(0.01)
            assert world.store.get(made.id).flat is None, "too little to be worth it"
            world.builds.improve_behind(made.id, cloned=True)
            await until(lambda: world.store.get(made.id).flat)
            working.cancel()

    run(work)


def test_much_that_changed_is_laid_flat_before_a_fork(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            poke(world, 1, b"x" * 8192)
            made = (await kept(sandbox, Action.SNAPSHOT)).build
            await world.builds.flat_for_clones(made.id)
            assert world.store.get(made.id).flat is None
            monkeypatch.setattr(module, "FORK_FLAT_BYTES", 4096)
            await world.builds.flat_for_clones(made.id)
            assert world.store.get(made.id).flat is not None

    run(work)


def test_what_fails_behind_does_not_end_the_work(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with running(world) as sandbox, asyncio.TaskGroup() as group:
            made = (await kept(sandbox, Action.SNAPSHOT)).build

            def broken(*_: object) -> None:
                raise OSError("the disk")

            monkeypatch.setattr(world.store, "flatten", broken)
            working = group.create_task(world.builds.work())
            world.builds.improve_behind(uuid4())
            world.builds.improve_behind(made.id)
            await world.builds.release(str(sandbox.request.id))
            sandbox.stop()
            await sandbox.ended()
            await until(lambda: world.store.all() == ())
            working.cancel()
        world.assert_nothing_left()

    run(work)


def test_a_build_id_is_used_once(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            made = (await kept(sandbox, Action.SNAPSHOT)).build
            with pytest.raises(Conflict) as taken:
                async with world.builds.draft(made.id, made.id):
                    pass
            assert taken.value.slug == "build_exists"

    run(work)


def test_a_cancel_while_a_build_is_pinned_leaves_no_pin(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            made = (await kept(sandbox, Action.SNAPSHOT)).build

        async def pin() -> None:
            async with world.builds.pinned(made.id):
                await asyncio.Event().wait()

        for turns in range(6):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(pin())
                for _ in range(turns):
                    await asyncio.sleep(0.001)
                task.cancel()
        assert world.store._pins == {}

    run(work)


def test_unknown_builds(world: FakeWorld, run) -> None:
    async def work() -> None:
        assert await world.builds.find(uuid4()) is None
        with pytest.raises(NotFound):
            async with world.builds.pinned(uuid4()):
                pass

    run(work)


def test_nothing_is_made_for_a_holder_whose_hold_cannot_be_read(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            hold = world.root / "data" / "holds" / str(sandbox.request.id)
            hold.write_text("not a build")
            with pytest.raises(Unavailable) as broken:
                await kept(sandbox, Action.PAUSE)
            assert broken.value.slug == "hold_broken" and sandbox.state is State.RUNNING
            assert hold.read_text() == "not a build" and world.store.all() == ()

    run(work)


def test_what_an_agent_before_did_not_come_to_is_improved(world: FakeWorld, run) -> None:
    async def work() -> None:
        template = str(TemplateId(uuid4()))
        async with running(world) as sandbox:
            poke(world, 1, b"changed")
            made = (await kept(sandbox, Action.SNAPSHOT, None, template)).build
            await module.improve_held_behind(world.builds)
            async with asyncio.TaskGroup() as group:
                working = group.create_task(world.builds.work())
                await until(lambda: world.store.get(made.id).flat)
                working.cancel()

    run(work)
