"""One sandbox over fakes: every step failed, every step cancelled, and nothing may be left."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from tests.unit.hostagent.world import FOR_EVER, Boom, FakeWorld, request
from wrenn_sandbox.core.errors import Bug, Conflict, Exhausted, Unavailable
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Lifetime
from wrenn_sandbox.hostagent import sandbox as module
from wrenn_sandbox.hostagent.sandbox import Sandbox

POINTS = ["template", "link.enter", "machine.enter", "guest.enter", "guest.init"]


async def run_sandbox(world: FakeWorld, lifetime: Lifetime = FOR_EVER) -> Sandbox:
    return Sandbox(request(lifetime), world.host())


def test_points_are_all_that_a_create_passes(world: FakeWorld, run) -> None:
    async def work() -> None:
        sandbox = await run_sandbox(world)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await sandbox.started()
            assert sandbox.state is State.RUNNING and sandbox.host_ip.startswith("10.11.")
            assert world.script.passed == POINTS
            assert [phase.name for phase in sandbox.watch.phases] == [
                "reserve", "template", "prepare", "turn", "restore", "init",
            ]  # fmt: skip
            sandbox.stop()
        assert (sandbox.state, sandbox.reason_slug, sandbox.host_ip) == (State.STOPPED, "", "")
        world.assert_nothing_left()

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_a_step_that_fails_leaves_nothing(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        world.script.fail_at = point
        world.script.error = lambda: Exhausted("no room", slug="host_full")
        sandbox = await run_sandbox(world)
        await sandbox.run()
        with pytest.raises(Exhausted) as failed:
            await sandbox.started()
        assert failed.value.slug == "host_full"
        assert sandbox.state is State.ERROR
        world.assert_nothing_left()

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_an_error_of_ours_becomes_a_reference_and_leaves_nothing(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        world.script.fail_at = point
        sandbox = await run_sandbox(world)
        await sandbox.run()
        with pytest.raises(Bug) as failed:
            await sandbox.started()
        assert "reference" in failed.value.message and Boom.__name__ not in failed.value.message
        world.assert_nothing_left()

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_destroy_cancels_a_create_at_every_step(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        world.script.hang_at = point
        sandbox = await run_sandbox(world)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await world.script.reached.wait()
            sandbox.stop()
            await sandbox.ended()
        with pytest.raises(Conflict) as failed:
            await sandbox.started()
        assert failed.value.slug == "sandbox_destroyed"
        world.assert_nothing_left()

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_the_agents_own_cancel_leaves_nothing(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        world.script.hang_at = point
        sandbox = await run_sandbox(world)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(sandbox.run())
            await world.script.reached.wait()
            task.cancel()
        assert task.cancelled() and sandbox.state is State.ERROR
        world.assert_nothing_left()

    run(work)


def test_a_machine_that_dies_while_it_starts_ends_the_create_at_once(world: FakeWorld, run) -> None:
    async def work() -> None:
        world.script.hang_at = "guest.init"
        sandbox = await run_sandbox(world)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await world.script.reached.wait()
            world.machines[0].die()
            await sandbox.ended()
        with pytest.raises(Unavailable) as failed:
            await sandbox.started()
        assert failed.value.slug == "vmm_died" and "it was killed" in failed.value.message
        world.assert_nothing_left()

    run(work)


def test_a_machine_that_dies_later_leaves_a_record_and_no_more(world: FakeWorld, run) -> None:
    async def work() -> None:
        sandbox = await run_sandbox(world)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await sandbox.started()
            world.machines[0].die()
            await sandbox.ended()
        assert (sandbox.state, sandbox.reason_slug) == (State.ERROR, "vmm_died")
        assert "it was killed" in sandbox.reason and sandbox.failure is None
        world.assert_nothing_left()

    run(work)


@pytest.mark.parametrize(
    ("lifetime", "slug"),
    [(Lifetime(idle_timeout_s=0, ends_at_unix_s=1.0), "deadline"), (Lifetime(idle_timeout_s=0), "idle_timeout")],
)
def test_a_limit_that_strikes_ends_it_with_its_reason(world: FakeWorld, run, lifetime: Lifetime, slug: str) -> None:
    async def work() -> None:
        sandbox = await run_sandbox(world, lifetime)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await sandbox.started()
            if slug == "idle_timeout":
                sandbox.set_lifetime(Lifetime(idle_timeout_s=10))
                sandbox.timers.last_use_s -= 10
            await sandbox.ended()
        assert (sandbox.state, sandbox.reason_slug) == (State.STOPPED, slug)
        assert sandbox.reason
        world.assert_nothing_left()

    run(work)


def test_use_is_refused_unless_it_runs_and_holds_off_the_idle_timeout(world: FakeWorld, run) -> None:
    async def work() -> None:
        sandbox = await run_sandbox(world, Lifetime(idle_timeout_s=1000))
        with pytest.raises(Conflict):
            async with sandbox.use():
                pass
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await sandbox.started()
            async with sandbox.use() as parts:
                assert parts.link.slot.host_ip == sandbox.host_ip
                sandbox.timers.last_use_s -= 5000
                sandbox.set_lifetime(Lifetime(idle_timeout_s=1000))
                assert sandbox.timers.uses == 1
            assert sandbox.timers.uses == 0 and sandbox.state is State.RUNNING
            sandbox.stop()
        with pytest.raises(Conflict) as refused:
            sandbox.touch()
        assert refused.value.slug == "invalid_state"

    run(work)


def test_a_call_that_breaks_because_the_sandbox_ends_says_so(world: FakeWorld, run) -> None:
    async def work() -> None:
        sandbox = await run_sandbox(world)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await sandbox.started()
            with pytest.raises(Conflict) as failed:
                async with sandbox.use():
                    world.machines[0].die()
                    await sandbox.ended()
                    broken = Unavailable("the guest does not answer", slug="guest_unreachable")
                    raise ExceptionGroup("as a TaskGroup raises it", [broken])
            assert failed.value.slug == "vmm_died"

    run(work)


def test_a_call_that_breaks_alone_keeps_its_own_error(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEWS_LIMIT_S", 0.0)

    async def work() -> None:
        sandbox = await run_sandbox(world)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await sandbox.started()
            with pytest.raises(Unavailable) as failed:
                async with sandbox.use():
                    raise Unavailable("the guest does not answer", slug="guest_unreachable")
            assert failed.value.slug == "guest_unreachable"
            sandbox.stop()

    run(work)


def test_a_stop_is_heard_through_a_full_inbox(world: FakeWorld, run) -> None:
    async def work() -> None:
        world.script.hang_at = "guest.init"
        sandbox = await run_sandbox(world)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await world.script.reached.wait()
            for _ in range(100):
                sandbox.stop()
            await sandbox.ended()
        world.assert_nothing_left()

    run(work)


def test_a_release_that_fails_keeps_nothing_else_from_being_released(world: FakeWorld, run) -> None:
    async def work() -> None:
        link = world.link

        @asynccontextmanager
        async def broken(policy):
            async with link(policy) as given:
                yield given
            raise OSError("the namespace is busy")

        world.link = broken
        sandbox = await run_sandbox(world)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())
            await sandbox.started()
            sandbox.stop()
        assert sandbox.state is State.STOPPED
        world.assert_nothing_left()

    run(work)
