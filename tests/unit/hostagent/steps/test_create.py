from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from tests.unit.hostagent.world import ARTEFACTS, PLATFORM, FakeWorld, request
from wrenn_sandbox.hostagent.phases import Stopwatch
from wrenn_sandbox.hostagent.steps.create import create, identity


def test_the_machine_gets_the_files_of_its_base_and_a_disk_of_its_own(world: FakeWorld, run) -> None:
    async def work() -> None:
        wanted, told = request(), []
        async with AsyncExitStack() as stack:
            parts = await create(wanted, world.host(), stack, Stopwatch(), told.append)
            (spec,) = world.specs
            directory = world.root / "run" / str(wanted.id)
            assert (directory / "disk.qcow2").read_text() == f"qcow2:{world.root / 'base' / 'disk.qcow2'}"
            assert spec.files.disk == directory / "disk.qcow2"
            assert spec.files.backing == (
                world.root / "base" / "disk.qcow2",
                world.catalog.rootfs(ARTEFACTS.rootfs),
            )
            assert spec.files.memory == world.root / "base" / "memory"
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


def test_defaults_reach_the_guest() -> None:
    wanted = request()
    spec = replace(wanted.spec, envs={"A": "1"}, default_user="root", default_workdir="/srv")
    body = identity(replace(wanted, spec=spec)).to_json()
    assert (body["envVars"], body["defaultUser"], body["defaultWorkdir"]) == ({"A": "1"}, "root", "/srv")
    assert body["accessToken"] == wanted.spec.access_token and body["sandboxId"] == str(wanted.id)


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
