"""A pause over fakes: every step failed, every step cancelled; nothing may be left and nothing lost."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.unit.hostagent.world import FakeWorld, kept, memory_of, poke, running
from wrenn_sandbox.core.errors import Bug, Conflict, Exhausted, Unavailable
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.inbox import Operation

POINTS = ["machine.writes_to", "machine.pause", "machine.snapshot"]


def test_a_pause_leaves_a_build_that_is_held_and_nothing_else(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            poke(world, 7, b"remember")
            made = await kept(sandbox, Action.PAUSE)
            assert sandbox.state is State.PAUSED and sandbox.build_id == made.build.id and not sandbox.is_living
            assert world.store.held() == {str(sandbox.request.id): made.build.id}
            assert memory_of(world, made.build.id, 7, 8) == b"remember"
            manifest = made.build.manifest
            assert manifest.access_token == sandbox.request.spec.access_token
            assert manifest.sandbox_id == str(sandbox.request.id)
            assert 0 < made.captured_ms <= made.durable_ms
        assert world.script.passed[-4:] == [*POINTS[:1], "guest.prepare", *POINTS[1:]]
        world.assert_nothing_left(builds=1)

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_a_step_that_fails_leaves_the_sandbox_running_and_no_build(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            world.script.fail_at = point
            world.script.error = lambda: Unavailable("no", slug="vmm_unresponsive")
            with pytest.raises(Unavailable):
                await kept(sandbox, Action.PAUSE)
            assert sandbox.state is State.RUNNING and world.machines[0].running
            assert world.store.held() == {} and world.store.all() == ()
            assert world.guests[0].known_tokens[-1] == sandbox.request.spec.access_token, "its ports serve again"
            world.script.fail_at = ""
            await kept(sandbox, Action.PAUSE)
        world.assert_nothing_left(builds=1)

    run(work)


@pytest.mark.parametrize("step", ["publish", "hold"])
def test_a_disk_that_fails_leaves_the_sandbox_running_and_its_hold_as_it_was(
    world: FakeWorld, run, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            old = (await kept(sandbox, Action.SNAPSHOT)).build.id

            def full(*_: object) -> None:
                raise Exhausted("full", slug="host_disk_full")

            with monkeypatch.context() as patched:
                patched.setattr(world.store, step, full)
                with pytest.raises(Exhausted):
                    await kept(sandbox, Action.PAUSE)
            assert sandbox.state is State.RUNNING and sandbox.build_id == old
            assert world.store.held() == {str(sandbox.request.id): old} and len(world.store.all()) == 1
            assert journal.read(world.root / "run" / str(sandbox.request.id)) is not None

    run(work)


def test_a_guest_that_cannot_be_quiet_is_paused_as_it_is(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            world.script.fail_at = "guest.prepare"
            world.script.error = lambda: Unavailable("404", slug="guest_not_quiet")
            await kept(sandbox, Action.PAUSE)
        assert sandbox.state is State.PAUSED

    run(work)


@pytest.mark.parametrize("point", ["guest.prepare", *POINTS])
def test_a_destroy_in_the_middle_wins(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            world.script.hang_at = point
            operation = sandbox.ask(Operation(Action.PAUSE, uuid4()))
            await world.script.reached.wait()
            sandbox.stop()
            await sandbox.ended()
            with pytest.raises(Conflict) as failed:
                await operation.settled()
            assert failed.value.slug == "sandbox_destroyed" and sandbox.state is State.STOPPED
        world.assert_nothing_left()

    run(work)


def test_a_machine_that_dies_in_the_middle_is_an_error_with_its_last_build(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            old = (await kept(sandbox, Action.SNAPSHOT)).build.id
            world.script.hang_at = "machine.snapshot"
            operation = sandbox.ask(Operation(Action.PAUSE, uuid4()))
            await world.script.reached.wait()
            world.machines[0].die()
            await sandbox.ended()
            with pytest.raises(Conflict) as failed:
                await operation.settled()
            assert failed.value.slug == "vmm_died"
        assert (sandbox.state, sandbox.reason_slug, sandbox.build_id) == (State.ERROR, "vmm_died", old)
        world.assert_nothing_left(builds=1)

    run(work)


def test_a_leftover_of_the_same_id_is_not_taken_for_the_pause(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            first = await kept(sandbox, Action.SNAPSHOT)
            with pytest.raises(Conflict) as taken:
                await kept(sandbox, Action.PAUSE, first.build.id)
            assert taken.value.slug == "build_exists" and sandbox.state is State.RUNNING
            with pytest.raises(Bug):
                world.script.fail_at = "machine.pause"
                await kept(sandbox, Action.PAUSE)

    run(work)


def test_uses_have_a_moment_to_end_and_no_new_ones_are_let_in(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            async with sandbox.use():
                operation = sandbox.ask(Operation(Action.PAUSE, uuid4()))
                while sandbox.state is not State.PAUSING:
                    await asyncio.sleep(0)
                with pytest.raises(Conflict) as refused:
                    async with sandbox.use():
                        pass
                assert refused.value.slug == "invalid_state" and "machine.pause" not in world.script.passed
            await operation.settled()
        assert sandbox.state is State.PAUSED

    run(work)
