from __future__ import annotations

import asyncio
import errno

import pytest

from tests.unit.hostagent.world import FakeWorld, kept, running
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.lifecycle import Action
from wrenn_sandbox.hostagent import moment
from wrenn_sandbox.hostagent.moment import Clock


def test_a_machine_that_does_not_answer_is_asked_again(world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moment, "_RESUME_PAUSES_S", (0.0, 0.0))

    async def work() -> None:
        async with running(world) as sandbox, sandbox.use() as parts:
            world.script.fail_at, world.script.error = "machine.resume", lambda: Unavailable("no")
            monkeypatch.setattr(moment, "_RESUME_EVERY_S", 0.0)
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(moment.let_run(sandbox.request, parts))
                while world.script.passed.count("machine.resume") < 10:
                    await asyncio.sleep(0)
                assert not asking.done(), "it stands still"
                world.script.fail_at = ""

    run(work)


def test_a_record_that_finds_no_room_keeps_the_build_that_it_names(
    world: FakeWorld, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    async def work() -> None:
        async with running(world) as sandbox, sandbox.use() as parts:
            before = parts.ground.parent_id
            with monkeypatch.context() as patch:
                patch.setattr(moment.journal, "write", full)
                first = (await kept(sandbox, Action.SNAPSHOT)).build.id
                second = (await kept(sandbox, Action.SNAPSHOT)).build.id
            (record,) = moment.journal.survey(world.root / "run").running.values()
            assert record.parent == before and sandbox.claims.builds == {before, second}
            third = (await kept(sandbox, Action.SNAPSHOT)).build.id
            (record,) = moment.journal.survey(world.root / "run").running.values()
            assert record.parent == third and sandbox.claims.builds == {third} and first != second

    run(work)


def test_a_disk_that_nobody_writes_to_is_no_ground_to_stand_on(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox, sandbox.use() as parts:
            world.machines[0].disk = 0
            with pytest.raises(Unavailable):
                await moment.find_disk(parts, world.builds)

    run(work)


def test_how_long_it_took_is_told(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with running(world) as sandbox:
            made = await kept(sandbox, Action.SNAPSHOT)
        assert 0 < made.captured_ms <= made.stopped_ms <= made.durable_ms
        paused = Clock(stopped=1.0, captured=2.0).kept(made.build)
        assert paused.captured_ms == 1000.0 and paused.stopped_ms == paused.durable_ms

    run(work)
