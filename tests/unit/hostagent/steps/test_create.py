from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from tests.unit.hostagent.world import ARTEFACTS, PLATFORM, Boom, FakeWorld, base, kept, poke, request, running
from wrenn_sandbox.core.artefacts import Platform
from wrenn_sandbox.core.errors import Conflict, Exhausted
from wrenn_sandbox.core.lifecycle import Action
from wrenn_sandbox.core.spec import DEFAULT_SHAPE
from wrenn_sandbox.hostagent.builds import FORK_FLAT_BYTES
from wrenn_sandbox.hostagent.phases import Stopwatch
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.steps.create import create


def test_the_machine_gets_the_files_of_its_base_and_a_disk_of_its_own(world: FakeWorld, run) -> None:
    async def work() -> None:
        wanted, told = request(), []
        async with AsyncExitStack() as stack:
            parts = await create(wanted, world.host(), stack, Stopwatch(), told.append)
            (spec,) = world.specs
            directory = world.root / "run" / str(wanted.id)
            assert (directory / "disk.qcow2").read_text() == f"qcow2:{base(world.root).disk}"
            assert spec.files.disk == directory / "disk.qcow2"
            assert spec.files.backing == (
                base(world.root).directory / "disk.qcow2",
                world.catalog.rootfs(ARTEFACTS.rootfs),
            )
            assert spec.files.memory == base(world.root).directory / "memory"
            assert (spec.platform, spec.name, spec.run_dir) == (PLATFORM, str(wanted.id), directory / "vmm")
            assert (spec.uid, spec.host_ip) == (parts.link.slot.uid, parts.link.slot.host_ip)
            assert told == [parts.machine]
        assert parts.relay.closed
        world.assert_nothing_left()

    run(work)


def test_the_guest_gets_an_identity_that_no_other_has(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await create(request(), world.host(), stack, Stopwatch(), lambda _: None)
        first, second = (guest.identities[0] for guest in world.guests)
        assert first.sandbox_id != second.sandbox_id
        assert first.machine_id != second.machine_id and len(first.machine_id) == 32
        assert first.entropy != second.entropy and len(first.entropy) >= 32

    run(work)


def test_starts_take_turns(world: FakeWorld, run) -> None:
    async def work() -> None:
        world.script.hang_at = "guest.init"
        async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
            tasks = [
                group.create_task(create(request(), world.host(), stack, Stopwatch(), lambda _: None)) for _ in range(3)
            ]
            await world.script.reached.wait()
            for _ in range(50):
                await asyncio.sleep(0)
            assert world.script.passed.count("machine.enter") == 2
            tasks[0].cancel()
            while world.script.passed.count("machine.enter") < 3:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()

    run(work)


def test_a_sandbox_is_made_of_a_build_with_its_memory_its_layers_and_its_defaults(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as source:
            poke(world, 9, b"from the build")
            made = (await kept(source, Action.SNAPSHOT)).build
        wanted = request(build_id=made.id)
        async with AsyncExitStack() as stack:
            parts = await create(wanted, world.host(), stack, Stopwatch(), lambda _: None)
            spec = world.specs[-1]
            assert spec.files.backing == (made.disk, base(world.root).disk, world.catalog.rootfs(ARTEFACTS.rootfs))
            assert spec.files.memory == base(world.root).memory and len(spec.files.patches) == 1
            memory = world.machines[-1].memory
            assert memory is not None and memory[9 * 4096 : 9 * 4096 + 14] == b"from the build"
            assert world.guests[-1].known_tokens == [source.request.spec.access_token]
            assert parts.ground.parent_id == made.id
        world.assert_nothing_left(builds=1)

    run(work)


def test_clones_share_a_memory_much_of_which_changed_and_a_resume_does_not_wait_for_that(
    world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with running(world) as source:
            poke(world, 9, b"x" * (FORK_FLAT_BYTES + 4096))
            made = (await kept(source, Action.PAUSE)).build

        async def memory(wanted: Request) -> tuple[Path, int]:
            async with AsyncExitStack() as stack:
                await create(wanted, world.host(), stack, Stopwatch(), lambda _: None)
                files = world.specs[-1].files
                return files.memory, sum(patch.length for patch in files.patches)

        patched = base(world.root).memory, FORK_FLAT_BYTES + 4096
        assert await memory(replace(source.request, build_id=made.id)) == patched
        with monkeypatch.context() as full:
            full.setattr(world.store, "materialise", no_room)
            assert await memory(request(build_id=made.id)) == patched
        assert await memory(request(build_id=made.id)) == (made.directory / "memory.flat", 0)
        world.assert_nothing_left(builds=1)

    run(work)


def no_room(build_id: UUID) -> Path:
    raise Exhausted("full", slug="host_disk_full")


@pytest.mark.parametrize("point", ["link.enter", "machine.enter", "guest.enter", "guest.init"])
def test_a_build_that_cannot_be_restored_stays_as_it_is(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        async with running(world) as source:
            made = (await kept(source, Action.PAUSE)).build
        world.script.fail_at = point
        with pytest.raises(Boom):
            async with AsyncExitStack() as stack:
                await create(request(build_id=made.id), world.host(), stack, Stopwatch(), lambda _: None)
        assert world.store._pins == {}
        world.store.verify(made.id)
        world.assert_nothing_left(builds=1)

    run(work)


def test_a_build_of_another_platform_is_refused_before_anything_is_made(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as source:
            made = (await kept(source, Action.PAUSE)).build
        world.platform = lambda cmdline: Platform("fake", "none", "another", "cpu", cmdline)
        with pytest.raises(Conflict) as refused:
            async with AsyncExitStack() as stack:
                await create(request(build_id=made.id), world.host(), stack, Stopwatch(), lambda _: None)
        assert refused.value.slug == "build_incompatible"
        world.assert_nothing_left(builds=1)

    run(work)


def test_what_was_reserved_before_is_used_and_given_back(world: FakeWorld, run) -> None:
    async def work() -> None:
        with world.capacity.reserved_together([DEFAULT_SHAPE]) as (reservation,):
            async with AsyncExitStack() as stack:
                await create(request(), world.host(), stack, Stopwatch(), lambda _: None, reservation=reservation)
                assert world.capacity.room().sandboxes == 1
        world.assert_nothing_left()

    run(work)
