"""A bake over fakes: every step failed, every step cancelled, and nothing may be left."""

from __future__ import annotations

import asyncio
import json
import os
import stat

import pytest

from tests.unit.hostagent.world import ARTEFACTS, PLATFORM, Boom, FakeWorld
from wrenn_sandbox.core.artefacts import Manifest
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.spec import DEFAULT_SHAPE
from wrenn_sandbox.hostagent.steps.bake import Kitchen, Order, bake

POINTS = [
    "link.enter",
    "machine.enter",
    "guest.enter",
    "guest.healthy",
    "guest.prepare",
    "machine.pause",
    "machine.snapshot",
]
ORDER = Order("k" * 32, ARTEFACTS, PLATFORM, DEFAULT_SHAPE)


def kitchen(world: FakeWorld) -> Kitchen:
    return Kitchen(
        driver=world,
        network=world,
        catalog=world.catalog,
        capacity=world.capacity,
        make_overlay=world.make_overlay,
        open_guest=world.open_guest,
        run_root=world.root / "run",
    )


def visible(world: FakeWorld) -> list[str]:
    return sorted(path.name for path in world.catalog.bases.iterdir() if not path.name.endswith(".lock"))


def test_a_base_is_complete_readable_by_all_and_writable_by_none(world: FakeWorld, run) -> None:
    async def work() -> None:
        directory = await bake(ORDER, kitchen(world))
        assert world.script.passed == POINTS
        assert directory == world.catalog.bases / ORDER.key and visible(world) == [ORDER.key]
        manifest = Manifest.from_json(json.loads((directory / "manifest.json").read_text()))
        assert (manifest.shape, manifest.artefacts, manifest.platform) == (DEFAULT_SHAPE, ARTEFACTS, PLATFORM)
        for name in ("disk.qcow2", "memory", "state"):
            found = (directory / name).stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o444, os.geteuid())
        assert (directory / "disk.qcow2").read_text() == f"raw:{world.catalog.rootfs(ARTEFACTS.rootfs)}"
        world.assert_nothing_left()

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_a_step_that_fails_leaves_nothing(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        world.script.fail_at = point
        with pytest.raises(Boom):
            await bake(ORDER, kitchen(world))
        assert visible(world) == []
        world.assert_nothing_left()

    run(work)


@pytest.mark.parametrize("point", POINTS)
def test_a_cancel_at_any_step_leaves_nothing(world: FakeWorld, run, point: str) -> None:
    async def work() -> None:
        world.script.hang_at = point
        async with asyncio.TaskGroup() as group:
            task = group.create_task(bake(ORDER, kitchen(world)))
            await world.script.reached.wait()
            task.cancel()
        assert visible(world) == []
        world.assert_nothing_left()

    run(work)


def test_a_machine_that_dies_ends_the_bake_at_once(world: FakeWorld, run) -> None:
    async def work() -> None:
        world.script.hang_at = "guest.healthy"
        async with asyncio.TaskGroup() as group:
            task = group.create_task(failure())
            await world.script.reached.wait()
            world.machines[0].die()
        assert task.result() == "vmm_died" and visible(world) == []
        world.assert_nothing_left()

    async def failure() -> str:
        with pytest.raises(Unavailable) as failed:
            await bake(ORDER, kitchen(world))
        return failed.value.slug

    run(work)


def test_what_a_dead_agent_left_half_made_is_thrown_away(world: FakeWorld, run) -> None:
    async def work() -> None:
        aside = world.catalog.bases / f".{ORDER.key}.new"
        aside.mkdir(parents=True)
        (aside / "memory").write_text("half")
        (world.catalog.bases / ORDER.key).mkdir()
        directory = await bake(ORDER, kitchen(world))
        assert (directory / "memory").read_text() == "memory" and visible(world) == [ORDER.key]

    run(work)


def test_of_two_agents_one_bakes_and_the_other_takes_it(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(bake(ORDER, kitchen(world))) for _ in range(2)]
        assert tasks[0].result() == tasks[1].result()
        assert world.script.passed == POINTS

    run(work)
