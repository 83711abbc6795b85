from __future__ import annotations

import asyncio
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.unit.hostagent.steps.test_bake import kitchen
from tests.unit.hostagent.world import ARTEFACTS, PLATFORM, FakeWorld
from wrenn_sandbox.core.errors import Bug, Unavailable
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, Shape
from wrenn_sandbox.hostagent import templates as module
from wrenn_sandbox.hostagent.templates import UNUSED_AFTER_S, Templates, load_base, template_key, unused


@pytest.fixture
def stocked(world: FakeWorld) -> FakeWorld:
    world.catalog.set_current(ARTEFACTS)
    return world


def quiet(_: str) -> None:
    return None


def test_the_key_changes_with_everything_a_snapshot_depends_on() -> None:
    keys = {template_key(ARTEFACTS, PLATFORM, DEFAULT_SHAPE)}
    for field in fields(ARTEFACTS):
        keys.add(template_key(replace(ARTEFACTS, **{field.name: "other"}), PLATFORM, DEFAULT_SHAPE))
    for field in fields(PLATFORM):
        keys.add(template_key(ARTEFACTS, replace(PLATFORM, **{field.name: "other"}), DEFAULT_SHAPE))
    keys.add(template_key(ARTEFACTS, PLATFORM, Shape(2, 512)))
    keys.add(template_key(ARTEFACTS, PLATFORM, Shape(1, 1024)))
    assert len(keys) == 1 + len(fields(ARTEFACTS)) + len(fields(PLATFORM)) + 2


def test_concurrent_callers_share_one_bake_and_hear_what_they_wait_for(stocked: FakeWorld, run) -> None:
    async def work() -> None:
        told: list[str] = []
        async with asyncio.TaskGroup() as group:
            templates = Templates(kitchen(stocked), group)
            tasks = [group.create_task(templates.ready(Shape(2, 1024), told.append)) for _ in range(5)]
        assert len({task.result().directory for task in tasks}) == 1
        assert stocked.script.passed.count("machine.enter") == 1
        assert told == ["preparing template base for 2 vCPU, 1024 MiB"] * 5 + [""] * 5
        assert [(s.shape, s.status) for s in templates.statuses()] == [(Shape(2, 1024), "ready")]

    run(work)


def test_a_ready_base_is_not_baked_again_even_by_another_agent(stocked: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            first = await Templates(kitchen(stocked), group).ready(DEFAULT_SHAPE, quiet)
            second = await Templates(kitchen(stocked), group).ready(DEFAULT_SHAPE, quiet)
        assert first == second and stocked.script.passed.count("machine.enter") == 1
        assert (first.directory / "last-used").exists()

    run(work)


def test_a_bake_survives_its_callers_cancel(stocked: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            templates = Templates(kitchen(stocked), group)
            caller = group.create_task(templates.ready(DEFAULT_SHAPE, quiet))
            while "machine.enter" not in stocked.script.passed:
                await asyncio.sleep(0)
            caller.cancel()
            assert [s.status for s in templates.statuses()] == ["preparing"]
            await templates.ready(DEFAULT_SHAPE, quiet)
        assert caller.cancelled() and stocked.script.passed.count("machine.enter") == 1

    run(work)


def test_a_failure_is_remembered_for_a_while_and_then_tried_again(
    stocked: FakeWorld, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        stocked.script.fail_at = "guest.healthy"
        stocked.script.error = lambda: Unavailable("it did not boot", slug="guest_unreachable")
        async with asyncio.TaskGroup() as group:
            templates = Templates(kitchen(stocked), group)
            for _ in range(3):
                with pytest.raises(Unavailable) as failed:
                    await templates.ready(DEFAULT_SHAPE, quiet)
                assert failed.value.slug == "guest_unreachable"
            assert failed.value.retry_after_s > 0
            assert stocked.script.passed.count("machine.enter") == 1
            assert [(s.status, s.detail) for s in templates.statuses()] == [("failed", "it did not boot")]
            monkeypatch.setattr(module, "FAILURE_REMEMBERED_S", 0.0)
            templates._failures.clear()
            stocked.script.fail_at = ""
            await templates.ready(DEFAULT_SHAPE, quiet)
        stocked.assert_nothing_left()

    run(work)


def test_an_error_of_ours_is_a_bug_for_the_caller(stocked: FakeWorld, run) -> None:
    async def work() -> None:
        stocked.script.fail_at = "guest.healthy"
        async with asyncio.TaskGroup() as group:
            with pytest.raises(Bug):
                await Templates(kitchen(stocked), group).ready(DEFAULT_SHAPE, quiet)

    run(work)


async def outcome(templates: Templates) -> str:
    try:
        await templates.ready(DEFAULT_SHAPE, quiet)
    except Unavailable as error:
        return error.slug
    return "ready"


def test_close_ends_a_bake_and_leaves_nothing(stocked: FakeWorld, run) -> None:
    async def work() -> None:
        stocked.script.hang_at = "guest.healthy"
        async with asyncio.TaskGroup() as group:
            templates = Templates(kitchen(stocked), group)
            caller = group.create_task(outcome(templates))
            await stocked.script.reached.wait()
            await templates.close()
            stocked.assert_nothing_left()
            assert await caller == "agent_stopping"

    run(work)


def test_without_artefacts_the_answer_says_what_to_do(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            with pytest.raises(Unavailable) as missing:
                await Templates(kitchen(world), group).ready(DEFAULT_SHAPE, quiet)
            assert missing.value.slug == "artefacts_missing"

    run(work)


def test_what_nobody_used_for_a_week_goes_but_for_the_default(tmp_path: Path) -> None:
    now = 1e9
    for name, age_s in (("old", UNUSED_AFTER_S + 1), ("default", UNUSED_AFTER_S + 1), ("young", UNUSED_AFTER_S - 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last-used").touch()
        os.utime(tmp_path / name / "last-used", (now - age_s, now - age_s))
    (tmp_path / ".half.new").mkdir()
    os.utime(tmp_path / ".half.new", (0, 0))
    assert unused(tmp_path, keep="default", now_unix_s=now) == ["old"]
    assert unused(tmp_path / "absent", keep="", now_unix_s=now) == []


def test_rubbish_goes_too(stocked: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            templates = Templates(kitchen(stocked), group)
            old = (await templates.ready(Shape(2, 512), quiet)).directory
            os.utime(old / "last-used", (0, 0))
            (stocked.catalog.bases / ".x.old").mkdir()
            templates._mark_and_remove(DEFAULT_SHAPE)
            assert sorted(p.name for p in stocked.catalog.bases.iterdir() if p.suffix != ".lock") == []
            await templates.ready(Shape(2, 512), quiet)
        assert stocked.script.passed.count("machine.enter") == 2

    run(work)


def test_what_another_agents_builds_stand_on_stays_as_long_as_its_data_does(stocked: FakeWorld, run) -> None:
    async def work() -> None:
        ours = kitchen(stocked)
        theirs = replace(ours, run_root=stocked.root / "theirs" / "run")
        theirs.run_root.mkdir(parents=True)
        async with asyncio.TaskGroup() as group:
            base = (await Templates(ours, group).ready(Shape(2, 512), quiet)).directory
            needed = {base.name}
            us = Templates(ours, group)
            them = Templates(theirs, group, lambda: frozenset(needed))
            them._mark_and_remove(DEFAULT_SHAPE)
            os.utime(base / "last-used", (0, 0))
            us._mark_and_remove(DEFAULT_SHAPE)
            them._mark_and_remove(DEFAULT_SHAPE)
            assert base.exists() and len(list((base / "needed-by").iterdir())) == 1
            needed.clear()
            them._mark_and_remove(DEFAULT_SHAPE)
            assert not base.exists(), "nobody needs it any more"

            base = (await us.ready(Shape(2, 512), quiet)).directory
            needed.add(base.name)
            them._mark_and_remove(DEFAULT_SHAPE)
            os.utime(base / "last-used", (0, 0))
            theirs.run_root.rmdir()
            us._mark_and_remove(DEFAULT_SHAPE)
            assert not base.exists(), "whoever needed it has gone with all its data"

    run(work)


def test_while_it_is_not_known_what_is_needed_nothing_goes(stocked: FakeWorld, run) -> None:
    def unknown() -> frozenset[str]:
        raise Unavailable("no", slug="hold_broken")

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            templates = Templates(kitchen(stocked), group, unknown)
            base = (await templates.ready(Shape(2, 512), quiet)).directory
            module.mark_needed(stocked.catalog.bases, {base.name}, kitchen(stocked).run_root)
            os.utime(base / "last-used", (0, 0))
            with pytest.raises(Unavailable):
                templates._mark_and_remove(DEFAULT_SHAPE)
            assert base.exists() and list((base / "needed-by").iterdir())

    run(work)


def test_a_directory_that_is_no_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(Bug) as broken:
        load_base(tmp_path)
    assert str(tmp_path) in broken.value.message


def test_an_agent_without_artefacts_lives_on(world: FakeWorld, run) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            templates = Templates(kitchen(world), group)
            keeping = group.create_task(templates.keep())
            for _ in range(20):
                await asyncio.sleep(0)
            await module.in_thread(lambda: None)
            assert not keeping.done()
            keeping.cancel()

    run(work)
