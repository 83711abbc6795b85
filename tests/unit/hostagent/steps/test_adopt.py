from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.unit.hostagent.world import FakeWorld, abandoned, kept, running
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.lifecycle import Action
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.steps.adopt import Found, WasPaused, adopt


async def left_behind(world: FakeWorld, *, snapshots: int = 0) -> Found:
    async with running(world) as sandbox:
        for _ in range(snapshots):
            await kept(sandbox, Action.SNAPSHOT)
        directory = await abandoned(world, sandbox)
    record = journal.read(directory)
    assert record is not None
    return Found(directory, record)


def test_a_machine_that_stands_still_goes_on_in_its_slot(world: FakeWorld, run) -> None:
    async def work() -> None:
        found = await left_behind(world)
        world.machines[0].running = False
        async with AsyncExitStack() as stack:
            told: list[object] = []
            parts = await adopt(found, world.host(), stack, told.append)
            assert parts.machine is world.machines[0] and told == [parts.machine] and world.machines[0].running
            assert parts.link.slot.index == found.record.slot
            assert parts.ground.parent_id == found.record.parent and parts.ground.pending == ()
            assert world.guests[-1].identities[0].sandbox_id == str(found.record.request.id)
            assert world.capacity.room().sandboxes == 1
        world.assert_nothing_left()

    run(work)


def test_an_overlay_that_was_never_used_goes_and_layers_without_a_build_are_remembered(world: FakeWorld, run) -> None:
    async def work() -> None:
        found = await left_behind(world, snapshots=1)  # it writes to disk-1.qcow2
        (found.directory / "disk.qcow2").write_text("a layer of which no build came")
        (found.directory / "disk-2.qcow2").write_text("")
        async with AsyncExitStack() as stack:
            parts = await adopt(found, world.host(), stack, lambda _: None)
            assert parts.ground.disk.name == "disk-1.qcow2"
            assert [path.name for path in parts.ground.pending] == ["disk.qcow2"]
            assert len(journal.overlays(found.directory)) == 2

    run(work)


def test_a_pause_that_was_durable_is_not_undone(world: FakeWorld, run) -> None:
    async def work() -> None:
        found = await left_behind(world, snapshots=1)
        held = world.store.get(world.store.held()[str(found.record.request.id)])
        top = found.directory / "disk-1.qcow2"
        top.unlink()
        top.hardlink_to(held.disk)
        world.machines[0].disk = top.stat().st_ino
        with pytest.raises(WasPaused):
            async with AsyncExitStack() as stack:
                await adopt(found, world.host(), stack, lambda _: None)
        world.assert_nothing_left(builds=1)

    run(work)


def test_a_vmm_that_has_gone_is_an_error(world: FakeWorld, run) -> None:
    async def work() -> None:
        found = await left_behind(world)
        (found.directory / "vmm" / "vmm.json").unlink()
        with pytest.raises(Unavailable) as gone:
            async with AsyncExitStack() as stack:
                await adopt(found, world.host(), stack, lambda _: None)
        assert gone.value.slug == "vmm_died"
        world.assert_nothing_left()

    run(work)


@pytest.mark.parametrize("point", ["link.enter", "machine.enter", "guest.enter", "machine.writes_to"])
def test_what_cannot_be_taken_over_leaves_nothing(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        found = await left_behind(world)
        world.script.fail_at, world.script.error = point, lambda: Unavailable("no")
        with pytest.raises(Unavailable):
            async with AsyncExitStack() as stack:
                await adopt(found, world.host(), stack, lambda _: None)
        world.assert_nothing_left()

    run(work)


def test_a_guest_that_does_not_answer_at_once_is_not_given_up(world: FakeWorld, run) -> None:
    async def work() -> None:
        found = await left_behind(world)
        world.script.fail_at, world.script.error = "guest.init", lambda: Unavailable("no")
        async with AsyncExitStack() as stack:
            await adopt(found, world.host(), stack, lambda _: None)

    run(work)
