from __future__ import annotations

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
            await moment.let_run(sandbox.request, parts)
            assert world.script.passed.count("machine.resume") == 3
            world.script.fail_at = ""

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
