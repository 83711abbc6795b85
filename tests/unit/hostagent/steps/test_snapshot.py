"""A snapshot over fakes: the sandbox goes on whatever fails, and no disk write is ever outside of what is kept."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.unit.hostagent.world import FakeWorld, HostFigures, kept, memory_of, poke, running
from wrenn_sandbox.core.errors import Conflict, Exhausted, Unavailable
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.inbox import Operation

POINTS = ["machine.writes_to", "machine.pause", "machine.snapshot"]


def test_the_sandbox_goes_on_above_a_new_overlay(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            directory = world.root / "run" / str(sandbox.request.id)
            (directory / "disk.qcow2").write_text("first")
            poke(world, 1, b"one")
            template = f"tpl-{uuid4()}"
            first = await kept(sandbox, Action.SNAPSHOT, None, template)
            assert sandbox.state is State.RUNNING and world.machines[0].running
            assert world.store.held() == {str(sandbox.request.id): first.build.id, template: first.build.id}
            assert [path.name for path in journal.overlays(directory)] == ["disk-1.qcow2"]
            assert (first.build.directory / "disk.qcow2").read_text() == "first"
            (directory / "disk-1.qcow2").write_text("second")
            poke(world, 2, b"two")
            second = await kept(sandbox, Action.SNAPSHOT)
            assert second.build.manifest.disk_chain[0] == second.build.manifest.parent == str(first.build.id)
            assert second.build.disk.read_text() == "second" and second.build.disk_layers()[1] == first.build.disk
            assert memory_of(world, first.build.id, 2, 3) == bytes(3)
            assert memory_of(world, second.build.id, 1, 3) == b"one"
            assert memory_of(world, second.build.id, 2, 3) == b"two"
            record = journal.read(directory)
            assert record is not None and record.parent == second.build.id
            assert "guest.prepare" not in world.script.passed
        world.assert_nothing_left(builds=2)

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_a_failure_before_the_overlay_is_on_top_changes_nothing(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            directory = world.root / "run" / str(sandbox.request.id)
            world.script.fail_at, world.script.error = point, lambda: Unavailable("no", slug="vmm_refused")
            with pytest.raises(Unavailable):
                await kept(sandbox, Action.SNAPSHOT)
            world.script.fail_at = ""
            assert world.machines[0].running and world.store.all() == ()
            assert [path.name for path in journal.overlays(directory)] == ["disk.qcow2"]
            await kept(sandbox, Action.SNAPSHOT)
        world.assert_nothing_left(builds=1)

    run(work)


def test_a_failure_after_that_loses_no_layer(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            directory = world.root / "run" / str(sandbox.request.id)
            (directory / "disk.qcow2").write_text("lowest")

            def full(*_: object) -> None:
                raise Exhausted("full", slug="host_disk_full")

            for name in ("disk.qcow2", "disk-1.qcow2"):
                with monkeypatch.context() as patched:
                    patched.setattr(world.store, "publish", full)
                    (directory / name).write_text(name)
                    with pytest.raises(Exhausted):
                        await kept(sandbox, Action.SNAPSHOT)
                assert world.machines[0].running and world.store.all() == ()
                if name == "disk-1.qcow2":
                    break
                # The second one cannot even begin: the layer below has no build, and none can be made.
                assert len(journal.overlays(directory)) == 2
            poke(world, 3, b"memory")
            (directory / "disk-1.qcow2").write_text("top")
            made = await kept(sandbox, Action.PAUSE)
            layers = [path.read_text() for path in made.build.disk_layers()[:3]]
            assert layers == ["top", "disk.qcow2", "disk"]
            assert memory_of(world, made.build.id, 3, 6) == b"memory"
        world.assert_nothing_left(builds=2)

    run(work)


def test_while_it_is_not_known_what_the_machine_writes_to_nothing_is_removed(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            directory, machine = world.root / "run" / str(sandbox.request.id), world.machines[0]
            snapshot = machine.snapshot

            async def silent(state, overlay=None) -> None:
                await snapshot(state, overlay)
                state.unlink()
                world.script.fail_at = "machine.writes_to"
                world.script.error = lambda: Unavailable("no", slug="vmm_unresponsive")
                raise Unavailable("no", slug="vmm_unresponsive")

            machine.snapshot = silent
            with pytest.raises(Unavailable):
                await kept(sandbox, Action.SNAPSHOT)
            assert len(journal.overlays(directory)) == 2
            machine.snapshot, world.script.fail_at = snapshot, ""
            (directory / "disk-1.qcow2").write_text("it was on top")
            made = await kept(sandbox, Action.PAUSE)
            assert made.build.disk.read_text() == "it was on top" and len(made.build.disk_layers()) == 4
        world.assert_nothing_left(builds=2)

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_a_destroy_in_the_middle_wins(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            world.script.hang_at = point
            operation = sandbox.ask(Operation(Action.SNAPSHOT, uuid4()))
            await world.script.reached.wait()
            sandbox.stop()
            with pytest.raises(Conflict):
                await operation.settled()
            await sandbox.ended()
        world.assert_nothing_left()

    run(work)


def test_a_full_disk_takes_no_snapshot_and_still_a_pause(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            world.figures = HostFigures(64_000, 60_000, 500_000, 100)
            with pytest.raises(Exhausted) as full:
                await kept(sandbox, Action.SNAPSHOT)
            assert full.value.slug == "host_disk_full" and "machine.pause" not in world.script.passed
            await kept(sandbox, Action.PAUSE)

    run(work)


def test_operations_wait_for_their_turn_and_the_same_one_is_joined(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            build_id = uuid4()
            first = sandbox.ask(Operation(Action.SNAPSHOT, build_id))
            while sandbox.operation is None:
                await asyncio.sleep(0)
            assert sandbox.ask(Operation(Action.SNAPSHOT, build_id)) is first
            second = sandbox.ask(Operation(Action.SNAPSHOT, uuid4()))
            last = sandbox.ask(Operation(Action.PAUSE, uuid4()))
            after = sandbox.ask(Operation(Action.SNAPSHOT, uuid4()))
            builds = [(await operation.settled()).build.id for operation in (first, second, last)]
            assert builds[0] == build_id and len(set(builds)) == 3
            with pytest.raises(Conflict):
                await after.settled()
        assert sandbox.state is State.PAUSED
        world.assert_nothing_left(builds=3)

    run(work)
