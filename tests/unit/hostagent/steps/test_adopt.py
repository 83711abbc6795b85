from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.unit.hostagent.world import Boom, FakeWorld, abandoned, kept, running
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.lifecycle import Action
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.steps import adopt as module
from wrenn_sandbox.hostagent.steps.adopt import Found, WasPaused, adopt, legible, let_go


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


STEPS = ["link.enter", "machine.enter", "machine.writes_to"]


@pytest.mark.parametrize("error", [lambda: Unavailable("no", slug="vmm_unresponsive"), lambda: OSError(24, "no"), Boom])
@pytest.mark.parametrize("point", STEPS)
def test_what_cannot_be_taken_over_at_once_is_tried_again(
    world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch, point: str, error: Callable[[], Exception]
) -> None:
    async def work() -> None:
        found = await left_behind(world)
        tries = patient(world, monkeypatch, tries=3)
        world.script.fail_at, world.script.error = point, error
        async with AsyncExitStack() as stack:
            parts = await adopt(found, world.host(), stack, lambda _: None)
            assert tries == [0.5, 1.0, 2.0] and world.machines[0].running
            assert parts.ground.disk.exists()
        world.assert_nothing_left()

    run(work)


def test_a_build_that_cannot_be_read_is_waited_for(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        found = await left_behind(world, snapshots=1)
        manifest = world.store.get(found.record.parent).directory / "manifest.json"
        whole = manifest.read_text()
        manifest.write_text("")
        tries = patient(world, monkeypatch, tries=7, then=lambda: manifest.write_text(whole))
        async with AsyncExitStack() as stack:
            await adopt(found, world.host(), stack, lambda _: None)
            assert tries == [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0]

    run(work)


@pytest.mark.parametrize("point", STEPS)
def test_its_vmm_ends_the_tries(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    async def work() -> None:
        found = await left_behind(world)

        def die() -> None:
            monkeypatch.setattr(journal, "vmm_lives", lambda _: False)
            world.script.fail_at = point

        patient(world, monkeypatch, tries=2, then=die)
        world.script.fail_at = point
        world.script.error = lambda: Unavailable("no", slug="vmm_unresponsive")
        with pytest.raises(Unavailable) as gone:
            async with AsyncExitStack() as stack:
                await adopt(found, world.host(), stack, lambda _: None)
        assert gone.value.slug == "vmm_died"
        world.assert_nothing_left()

    run(work)


@pytest.mark.parametrize("point", STEPS)
def test_a_destroy_ends_the_tries_and_the_machine(
    world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    async def work() -> None:
        found = await left_behind(world)
        world.reserved.add(found.record.slot)
        ended: list[Path] = []
        end_vmm = journal.end_vmm

        async def end(directory: Path) -> None:
            ended.append(directory)
            await end_vmm(directory)

        monkeypatch.setattr(journal, "end_vmm", end)
        monkeypatch.setattr(journal, "vmm_lives", lambda _: True)
        waiting = asyncio.Event()

        async def hang(_: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(module, "_sleep", hang)
        world.script.fail_at, world.script.error = point, lambda: Unavailable("no")

        async def taking() -> None:
            async with AsyncExitStack() as stack:
                await adopt(found, world.host(), stack, lambda _: None)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(taking())
            await waiting.wait()
            assert found.directory.exists() and ended == []
            task.cancel()
        assert set(ended) == {found.directory}
        world.assert_nothing_left()

    run(work)


def test_a_pause_that_was_durable_is_let_go_without_asking_its_machine(world: FakeWorld, run) -> None:
    async def work() -> None:
        found = await left_behind(world)
        world.reserved.add(found.record.slot)
        world.script.passed.clear()
        with pytest.raises(WasPaused):
            async with AsyncExitStack() as stack:
                await let_go(found, world.host(), stack)
        assert world.script.passed == []
        world.assert_nothing_left()

    run(work)


def test_a_record_is_waited_for(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        found = await left_behind(world)
        record = found.directory / journal.RECORD
        whole = record.read_text()
        record.write_text('{"version": 99}')
        tries = patient(world, monkeypatch, tries=2, then=lambda: record.write_text(whole))
        async with AsyncExitStack() as stack:
            assert await legible(found.directory, stack) == found.record
            assert tries == [0.5, 1.0] and found.directory.exists()
        world.assert_nothing_left()

    run(work)


def patient(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch, *, tries: int, then: Callable[[], object] = lambda: None
) -> list[float]:
    """Its VMM lives; after so many tries nothing fails any more. What was waited for between them."""
    waited: list[float] = []

    async def sleep(pause_s: float) -> None:
        waited.append(pause_s)
        assert len(waited) <= tries, "it is tried too often"
        if len(waited) == tries:
            world.script.fail_at = ""
            then()

    monkeypatch.setattr(journal, "vmm_lives", lambda _: True)
    monkeypatch.setattr(module, "_sleep", sleep)
    return waited


def test_a_guest_that_does_not_answer_at_once_is_not_given_up(world: FakeWorld, run) -> None:
    async def work() -> None:
        found = await left_behind(world)
        world.script.fail_at, world.script.error = "guest.init", lambda: Unavailable("no")
        async with AsyncExitStack() as stack:
            await adopt(found, world.host(), stack, lambda _: None)

    run(work)
