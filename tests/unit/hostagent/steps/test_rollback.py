from __future__ import annotations

import asyncio
import threading
from collections import Counter
from uuid import UUID, uuid4

import pytest

from tests.unit.hostagent.world import FakeWorld, kept, poke, running
from wrenn_sandbox.core.errors import Conflict, Exhausted, NotFound, Unavailable
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.inbox import Operation

POINTS = ["link.enter", "machine.enter", "guest.enter", "guest.init"]


def at(world: FakeWorld, page: int, length: int) -> bytes:
    memory = world.machines[-1].memory
    assert memory is not None
    return memory[page * 4096 : page * 4096 + length]


def test_the_sandbox_is_as_it_was_and_keeps_its_id(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            poke(world, 5, b"then")
            then = (await kept(sandbox, Action.SNAPSHOT)).build.id
            poke(world, 5, b"now!")
            later = (await kept(sandbox, Action.SNAPSHOT)).build.id
            host_ip, sandbox_id = sandbox.host_ip, sandbox.request.id
            await kept(sandbox, Action.ROLLBACK, then)
            assert at(world, 5, 4) == b"then" and len(world.machines) == 2
            assert sandbox.state is State.RUNNING and sandbox.request.id == sandbox_id
            assert sandbox.host_ip not in ("", host_ip) and sandbox.build_id == then
            assert world.store.held() == {str(sandbox_id): then}
            assert list(journal.survey(world.root / "run").running) == [world.root / "run" / f"{sandbox_id}.1"]
            identity, token = world.guests[1].identities[0], world.guests[1].known_tokens[0]
            assert identity.sandbox_id == str(sandbox_id) and token == sandbox.request.spec.access_token
            await world.builds.collect()
            assert [build.id for build in world.store.all()] == [then], f"{later} is nobody's"
            world.machines[0].die()  # of which nobody hears any more
            poke(world, 5, b"anew")
            made = await kept(sandbox, Action.PAUSE)
            assert made.build.manifest.parent == str(then)
        world.assert_nothing_left(builds=2)

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_a_step_that_fails_leaves_the_old_one_running(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            then = (await kept(sandbox, Action.SNAPSHOT)).build.id
            host_ip = sandbox.host_ip
            world.script.fail_at, world.script.error = point, lambda: Unavailable("no")
            with pytest.raises(Unavailable):
                await kept(sandbox, Action.ROLLBACK, then)
            world.script.fail_at = ""
            assert sandbox.state is State.RUNNING and sandbox.host_ip == host_ip and world.machines[0].running
            assert world.capacity.room().sandboxes == 1 and +world.held == Counter(link=1, machine=1, guest=1)
            assert len(list((world.root / "run").iterdir())) == 1
        world.assert_nothing_left(builds=1)

    run(work)


def test_a_new_machine_that_dies_fails_it_at_once(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            then = (await kept(sandbox, Action.SNAPSHOT)).build.id
            world.script.hang_at = "guest.init"
            operation = sandbox.ask(Operation(Action.ROLLBACK, then))
            await world.script.reached.wait()
            world.machines[1].die()
            with pytest.raises(Unavailable) as failed:
                await operation.settled()
            assert failed.value.slug == "vmm_died" and sandbox.state is State.RUNNING
            world.script.hang_at = ""
            await kept(sandbox, Action.PAUSE)

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_a_destroy_in_the_middle_wins(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            then = (await kept(sandbox, Action.SNAPSHOT)).build.id
            world.script.hang_at = point
            operation = sandbox.ask(Operation(Action.ROLLBACK, then))
            await world.script.reached.wait()
            sandbox.stop()
            with pytest.raises(Conflict):
                await operation.settled()
            await sandbox.ended()
        world.assert_nothing_left(builds=1)

    run(work)


def test_an_old_machine_that_dies_in_the_last_instant_leaves_hold_and_offer_the_same(
    world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with running(world) as sandbox:
            then = (await kept(sandbox, Action.SNAPSHOT)).build.id
            later = (await kept(sandbox, Action.SNAPSHOT)).build.id
            hold = world.store.hold

            def slow(holder: str, build_id: UUID) -> None:
                hold(holder, build_id)
                dead = threading.Event()
                loop.call_soon_threadsafe(lambda: (world.machines[0].die(), loop.call_later(0.01, dead.set)))
                dead.wait()

            monkeypatch.setattr(world.store, "hold", slow)
            operation = sandbox.ask(Operation(Action.ROLLBACK, then))
            await sandbox.ended()
            assert operation.answer.done() and sandbox.state is State.ERROR
            assert world.store.held() == {str(sandbox.request.id): sandbox.build_id}
            assert sandbox.build_id == then != later
        await world.builds.collect()
        world.assert_nothing_left(builds=1)

    run(work)


def test_a_hold_that_fails_leaves_the_old_one_running(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(holder: str, build_id: UUID) -> None:
        raise Exhausted("full", slug="host_disk_full")

    async def work() -> None:
        async with running(world) as sandbox:
            then = (await kept(sandbox, Action.SNAPSHOT)).build.id
            later = (await kept(sandbox, Action.SNAPSHOT)).build.id
            host_ip = sandbox.host_ip
            monkeypatch.setattr(world.store, "hold", full)
            with pytest.raises(Exhausted):
                await kept(sandbox, Action.ROLLBACK, then)
            assert sandbox.state is State.RUNNING and sandbox.host_ip == host_ip
            assert world.store.held() == {str(sandbox.request.id): later}
            assert world.capacity.room().sandboxes == 1

    run(work)


def test_a_build_that_is_not_there_changes_nothing(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            with pytest.raises(NotFound):
                await kept(sandbox, Action.ROLLBACK, uuid4())
            assert sandbox.state is State.RUNNING

    run(work)


def test_what_was_going_on_inside_is_cut_off_with_a_reason(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            then = (await kept(sandbox, Action.SNAPSHOT)).build.id
            with pytest.raises(Conflict) as failed:
                async with sandbox.use():
                    await kept(sandbox, Action.ROLLBACK, then)
                    raise Unavailable("the guest does not answer", slug="guest_unreachable")
            assert failed.value.slug == "sandbox_rolled_back"

    run(work)
