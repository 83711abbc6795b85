"""Builds and the templates made of them, on every database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import IntegrityError

from tests.contract.test_db import NOW, add, get, new_sandbox, new_team
from wrenn_sandbox.core.ids import PLATFORM_TEAM_ID, BuildId, HostId, SandboxId, TeamId, TemplateId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Lifetime, Shape
from wrenn_sandbox.db import builds, sandboxes, templates
from wrenn_sandbox.db.builds import Build, Kind, Status
from wrenn_sandbox.db.sandboxes import Change
from wrenn_sandbox.db.templates import Template, Type

HOST = HostId(UUID(int=7))


def new_build(team: TeamId, **changes: Any) -> Build:
    made = Build(
        id=BuildId(uuid4()),
        team_id=team,
        host_id=HOST,
        sandbox_id=SandboxId(UUID(int=8)),
        kind=Kind.SNAPSHOT,
        created_at=NOW,
        shape=Shape(2, 1024),
        parent_id=BuildId(UUID(int=9)),
        template_id=TemplateId(uuid4()),
        name="n",
        size_bytes=5 << 32,
    )
    return replace(made, **changes)


def new_template(team: TeamId, name: str = "n", **changes: Any) -> Template:
    made = Template(
        id=TemplateId(uuid4()),
        team_id=team,
        name=name,
        created_at=NOW,
        type=Type.SNAPSHOT,
        shape=Shape(4, 2048),
        size_bytes=5 << 32,
        disk_size_mb=11,
        host_id=HOST,
        build_id=BuildId(uuid4()),
        default_user="ada",
        default_env={"A": "ü"},
    )
    return replace(made, **changes)


def test_an_intent_becomes_a_record(opened, run):
    async def main() -> None:
        async with opened() as db:
            team = await new_team(db)
            made = new_build(team)
            async with db.write() as connection:
                assert await builds.begin(connection, made)
            async with db.write() as connection:
                assert await builds.intended(connection, made.id) == made
                assert await builds.of_host(connection, HOST) == [made]
                assert await builds.of_host(connection, HostId(uuid4())) == []
                assert await builds.of_sandbox(connection, team, made.sandbox_id) == [], "not before it is durable"
                assert await builds.some(connection, team, [made.id]) == []
                later = replace(made, size_bytes=1, kind=Kind.PAUSE, created_at=NOW + timedelta(seconds=1))
                await builds.ready(connection, later)
            wanted = replace(later, kind=Kind.SNAPSHOT, status=Status.READY, name="", template_id=None)
            async with db.write() as connection:
                assert await builds.intended(connection, made.id) is None
                assert await builds.of_sandbox(connection, team, made.sandbox_id) == [wanted]
                assert await builds.some(connection, team, [made.id, BuildId(uuid4())]) == [wanted]
                stranger = TeamId(uuid4())
                assert await builds.of_sandbox(connection, stranger, made.sandbox_id) == []
                assert await builds.some(connection, stranger, [made.id]) == []
                await builds.forget(connection, [])
                await builds.forget(connection, [made.id])
                assert await builds.of_host(connection, HOST) == []

    run(main())


def test_a_record_needs_no_intent_and_can_be_written_again(opened, run):
    async def main() -> None:
        async with opened() as db:
            made = new_build(await new_team(db))
            async with db.write() as connection:
                await builds.ready(connection, made)
                await builds.ready(connection, replace(made, size_bytes=2))
                (found,) = await builds.of_host(connection, HOST)
            assert (found.status, found.size_bytes, found.name) == (Status.READY, 2, "")

    run(main())


def test_one_snapshot_of_a_name_is_made_at_a_time(opened, run):
    async def main() -> None:
        async with opened() as db:
            team, other = await new_team(db), await new_team(db)
            async with db.write() as connection:
                assert await builds.begin(connection, new_build(team))
            async with db.write() as connection:
                assert not await builds.begin(connection, new_build(team))
                # The transaction goes on: other names, other teams and the nameless are free.
                for free in (
                    new_build(team, name="m"),
                    new_build(other),
                    *(new_build(team, name="") for _ in range(2)),
                ):
                    assert await builds.begin(connection, free)
            async with db.read() as connection:
                assert len(await builds.of_host(connection, HOST)) == 5
            first = new_build(team, name="z")
            async with db.write() as connection:
                assert await builds.begin(connection, first)
                await builds.ready(connection, first)
                assert await builds.begin(connection, new_build(team, name="z")), "what is durable takes no name"

    run(main())


def test_of_many_who_ask_at_once_one_gets_the_name(opened, run):
    async def main() -> None:
        async with opened() as db:
            team, got = await new_team(db), []

            async def ask() -> None:
                async with db.write() as connection:
                    got.append(await builds.begin(connection, new_build(team)))

            async with asyncio.TaskGroup() as group:
                for _ in range(6):
                    group.create_task(ask())
            assert sorted(got) == [False] * 5 + [True]

    run(main())


def test_a_build_of_nobody_is_a_bug(opened, run):
    async def main() -> None:
        async with opened() as db:
            with pytest.raises(IntegrityError):
                async with db.write() as connection:
                    await builds.begin(connection, new_build(TeamId(uuid4()), name=""))

    run(main())


def test_builds_that_something_names_are_needed(opened, run):
    async def main() -> None:
        async with opened() as db:
            team = await new_team(db)
            ids = [BuildId(uuid4()) for _ in range(5)]
            template, paused, failed, stopped, elsewhere = ids
            await add(
                db,
                new_sandbox(team, state=State.PAUSED, build_id=paused),
                new_sandbox(team, state=State.ERROR, build_id=failed),
                new_sandbox(team, state=State.STOPPED, build_id=stopped),
                new_sandbox(team, state=State.PAUSED, build_id=elsewhere, host_id=HostId(uuid4())),
                new_sandbox(team, state=State.RUNNING),
            )
            async with db.write() as connection:
                await templates.add(connection, new_template(team, build_id=template))
                assert await builds.needed(connection, HOST) == {template, paused, failed}

    run(main())


def test_templates_come_back_as_they_were_written(opened, run):
    async def main() -> None:
        async with opened() as db:
            team, stranger = await new_team(db), await new_team(db)
            first, second = new_template(team), new_template(team, "m", created_at=NOW + timedelta(seconds=1))
            async with db.write() as connection:
                for template in (first, second):
                    await templates.add(connection, template)
            async with db.write() as connection:
                assert await templates.by_name(connection, team, "n") == first
                assert await templates.by_name(connection, stranger, "n") is None
                own = [t for t in await templates.visible(connection, team) if not t.platform]
                assert own == [second, first]
                assert await templates.visible(connection, stranger, [Type.SNAPSHOT]) == []
                (base,) = await templates.visible(connection, stranger)
                assert (base.name, base.type, base.team_id, base.default_user) == (
                    "base",
                    Type.BASE,
                    PLATFORM_TEAM_ID,
                    "",
                )
                assert base.build_id is None and base.platform
                assert await templates.of_builds(connection, team, [first.build_id, BuildId(uuid4())]) == [first]  # type: ignore[list-item]
                assert await templates.of_builds(connection, stranger, [first.build_id]) == []  # type: ignore[list-item]
                assert await templates.of_host(connection, HOST) == {first.id, second.id}
                assert await templates.remove(connection, stranger, "n") is None
                assert await templates.remove(connection, team, "base") is None
                assert await templates.remove(connection, team, "n") == first
                assert await templates.by_name(connection, team, "n") is None

    run(main())


def test_a_name_is_a_teams_once(opened, run):
    async def main() -> None:
        async with opened() as db:
            team = await new_team(db)
            with pytest.raises(IntegrityError):
                async with db.write() as connection:
                    for _ in range(2):
                        await templates.add(connection, new_template(team))

    run(main())


def test_a_sandbox_keeps_its_builds_user_and_new_timeouts(opened, run):
    async def main() -> None:
        async with opened() as db:
            first, second = BuildId(uuid4()), BuildId(uuid4())
            row = new_sandbox(await new_team(db), state=State.RUNNING, default_user="ada")
            await add(db, row)
            assert await get(db, row) == row
            async with db.write() as connection:
                assert await sandboxes.descend(connection, row.id, build=first, current=second, host_ip="10.11.0.9")
                assert not await sandboxes.descend(connection, row.id)
            found = await get(db, row)
            assert (found.build_id, found.current_build_id, found.host_ip) == (first, second, "10.11.0.9")
            assert found.last_updated == row.last_updated
            async with db.write() as connection:
                change = Change(lifetime=Lifetime(9), build_id=second, current_build_id=first, host_ip="")
                assert await sandboxes.move(connection, row.id, {State.RUNNING}, State.PAUSED, change)
                assert not await sandboxes.descend(connection, row.id, current=second), "it does not run"
            found = await get(db, row)
            assert (found.build_id, found.current_build_id, found.lifetime) == (second, first, Lifetime(9))
            async with db.write() as connection:
                assert await sandboxes.move(connection, row.id, {State.PAUSED}, State.RESUMING)
            found = await get(db, row)
            assert (found.build_id, found.current_build_id, found.lifetime) == (second, first, Lifetime(9))

    run(main())


def test_what_is_intended_of_a_sandbox_stays_until_it_is_settled(opened, run):
    async def main() -> None:
        async with opened() as db:
            build, other = BuildId(uuid4()), BuildId(uuid4())
            team = await new_team(db)
            row = new_sandbox(team, state=State.PENDING, intended_build_id=build)
            await add(db, row)
            assert await get(db, row) == row

            async def intended() -> BuildId | None:
                found = await get(db, row)
                return found.intended_build_id

            async with db.write() as connection:
                assert not await sandboxes.begin_rollback(connection, row.id, other), "it does not run"
                assert await sandboxes.move(connection, row.id, {State.PENDING}, State.RUNNING)
            assert await intended() is None
            before = await get(db, row)
            async with db.write() as connection:
                assert await sandboxes.begin_rollback(connection, row.id, other)
            found = await get(db, row)
            assert found.intended_build_id == other and found.last_updated > before.last_updated
            async with db.write() as connection:
                assert await sandboxes.descend(connection, row.id, build=build)
                assert await sandboxes.move(connection, row.id, {State.RUNNING}, State.MISSING)
                assert await sandboxes.move(connection, row.id, {State.MISSING}, State.RUNNING)
            assert await intended() == other, "nobody knows what came of it yet"
            async with db.write() as connection:
                assert await sandboxes.descend(connection, row.id, settled=True)
            found = await get(db, row)
            assert (found.intended_build_id, found.build_id) == (None, build)

    run(main())


def test_rows_are_found_by_their_ids_whatever_became_of_them(opened, run):
    async def main() -> None:
        async with opened() as db:
            team, other = await new_team(db), await new_team(db)
            rows = [new_sandbox(team, state=State.STOPPED), new_sandbox(other, state=State.PAUSED), new_sandbox(team)]
            for row in rows:
                await add(db, row)
            wanted = [rows[0].id, rows[1].id, *(SandboxId(uuid4()) for _ in range(2500))]
            async with db.read() as connection:
                found = await sandboxes.some_of_any_team(connection, wanted)
                assert await sandboxes.some_of_any_team(connection, []) == []
            assert {row.id for row in found} == {rows[0].id, rows[1].id}

    run(main())


def test_a_failure_that_can_be_resumed_is_found_and_an_end_that_is_left_is_none(opened, run):
    async def main() -> None:
        async with opened() as db:
            team = await new_team(db)
            row = new_sandbox(team, state=State.RUNNING, build_id=BuildId(uuid4()))
            await add(db, row, new_sandbox(team, state=State.ERROR))
            async with db.write() as connection:
                assert await sandboxes.resumable_failures(connection, HOST) == []
                await sandboxes.move(connection, row.id, {State.RUNNING}, State.ERROR)
                (found,) = await sandboxes.resumable_failures(connection, HOST)
                assert found.id == row.id and found.stopped_at is not None
                assert await sandboxes.resumable_failures(connection, HostId(uuid4())) == []
                await sandboxes.move(connection, row.id, {State.ERROR}, State.RESUMING)
            assert (await get(db, row)).stopped_at is None

    run(main())
