"""One sandbox over fakes: every step failed, every step cancelled, and nothing may be left."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import pytest

from tests.unit.hostagent.world import FOR_EVER, Boom, FakeWorld, request, running
from wrenn_sandbox.core.errors import Bug, Conflict, Exhausted, Unavailable
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.core.spec import Lifetime, TimeoutAction
from wrenn_sandbox.hostagent import sandbox as module
from wrenn_sandbox.hostagent.inbox import Operation
from wrenn_sandbox.hostagent.sandbox import Sandbox
from wrenn_sandbox.hostagent.steps.adopt import WasPaused
from wrenn_sandbox.hostagent.steps.create import create

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
def test_want_of_room_is_no_error_of_ours_wherever_it_is_found(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        world.script.fail_at = point
        world.script.error = lambda: OSError(errno.ENOSPC, "No space left on device")
        sandbox = await run_sandbox(world)
        await sandbox.run()
        with pytest.raises(Exhausted) as failed:
            await sandbox.started()
        assert failed.value.slug == "host_disk_full"
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


@pytest.mark.parametrize("end", ["destroyed", "its machine died"])
def test_whoever_waits_for_a_turn_hears_of_the_end(world: FakeWorld, run, end: str) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            world.script.hang_at = "machine.pause"
            first = sandbox.ask(Operation(Action.SNAPSHOT, uuid4()))
            await world.script.reached.wait()
            waiting = [sandbox.ask(Operation(action, uuid4())) for action in (Action.PAUSE, Action.SNAPSHOT)]
            sandbox.stop() if end == "destroyed" else world.machines[0].die()
            for operation in (first, *waiting):
                with pytest.raises(Conflict) as told:
                    await operation.settled()
                assert told.value.slug == ("sandbox_destroyed" if end == "destroyed" else "vmm_died")

    run(work)


def test_after_every_pause_its_chain_is_looked_at(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []
    monkeypatch.setattr(world.builds, "improve_behind", lambda build_id, **_: looked_at.append(build_id))

    async def work() -> None:
        async with running(world) as sandbox:
            sandbox.set_lifetime(DEADLINE_PAUSE)
            await sandbox.ended()
        assert looked_at == [sandbox.build_id] and sandbox.state is State.PAUSED

    run(work)


IDLE, DEADLINE = Lifetime(idle_timeout_s=10), Lifetime(idle_timeout_s=0, ends_at_unix_s=1.0)


@pytest.mark.parametrize("limit", [IDLE, DEADLINE], ids=["idle_timeout", "deadline"])
@pytest.mark.parametrize("action", list(TimeoutAction))
def test_a_limit_that_strikes_does_what_it_shall(world: FakeWorld, run, limit: Lifetime, action) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            sandbox.set_lifetime(replace(limit, idle_action=action, deadline_action=action))
            sandbox.timers.last_use_s -= 10
            await sandbox.ended()
        ends = {TimeoutAction.KILL: State.STOPPED, TimeoutAction.PAUSE: State.PAUSED}
        assert sandbox.state is ends[action] and sandbox.reason
        assert sandbox.reason_slug == ("deadline" if limit is DEADLINE else "idle_timeout")
        world.assert_nothing_left(builds=1 if action is TimeoutAction.PAUSE else 0)

    run(work)


def test_a_pause_by_timer_that_fails_leaves_it_running_and_is_tried_again(
    world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_AGAIN_S", 0.001)

    async def work() -> None:
        async with running(world) as sandbox:
            world.script.fail_at = "machine.pause"
            sandbox.set_lifetime(DEADLINE_PAUSE)
            while world.script.passed.count("machine.pause") < 3:
                await asyncio.sleep(0.001)
            assert sandbox.is_living
            world.script.fail_at = ""
            await sandbox.ended()
        assert (sandbox.state, sandbox.reason_slug) == (State.PAUSED, "deadline")

    run(work)


DEADLINE_PAUSE = replace(DEADLINE, deadline_action=TimeoutAction.PAUSE)


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


@pytest.mark.parametrize("end", [State.STOPPED, State.PAUSED])
def test_a_release_that_fails_keeps_nothing_else_from_being_released(world: FakeWorld, run, end: State) -> None:
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
            if end is State.PAUSED:  # durable already: nothing after that makes it undone
                made = await sandbox.ask(Operation(Action.PAUSE, uuid4())).settled()
                assert world.store.held() == {str(sandbox.request.id): made.build.id}
            else:
                sandbox.stop()
        assert sandbox.state is end
        world.assert_nothing_left(builds=1 if end is State.PAUSED else 0)

    run(work)


def test_one_that_is_taken_over_can_be_used_as_soon_as_it_runs_again(world: FakeWorld, run) -> None:
    async def work() -> None:
        world.script.hang_at = ""
        go = asyncio.Event()

        async def slowly(*args):
            await go.wait()
            return await create(*args)

        sandbox = Sandbox(request(), world.host(), make=slowly, begin=State.RUNNING)
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.run())

            async def use() -> str:
                async with sandbox.use() as parts:
                    return parts.link.slot.host_ip

            using = group.create_task(use())
            await asyncio.sleep(0)
            assert not using.done()
            go.set()
            assert await using == sandbox.host_ip
            sandbox.stop()

    run(work)


def test_a_pause_that_was_durable_when_its_agent_died_is_brought_to_its_end(world: FakeWorld, run) -> None:
    async def work() -> None:
        async def found_paused(*args):
            await create(*args)
            raise WasPaused

        sandbox = Sandbox(request(), world.host(), make=found_paused, begin=State.RUNNING)
        await sandbox.run()
        assert (sandbox.state, sandbox.failure) == (State.PAUSED, None)
        world.assert_nothing_left()

    run(work)
