"""What the control plane relies on, on every database it supports."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from wrenn_sandbox.core.ids import PLATFORM_TEAM_ID, ApiKeyId, HostId, SandboxId, TeamId, TemplateId, UserId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Egress, Lifetime, NetworkPolicy, Shape, TimeoutAction
from wrenn_sandbox.db import accounts, api_keys, hosts, sandboxes, templates
from wrenn_sandbox.db.api_keys import ApiKey
from wrenn_sandbox.db.engine import Database
from wrenn_sandbox.db.hosts import HostFacts, HostStatus
from wrenn_sandbox.db.sandboxes import Change, Page, Sandbox
from wrenn_sandbox.db.tables import UuidType, metadata

#: reference §3.1, the tables there are so far: every column of them.
PUBLISHED = {
    "teams": "id name slug is_byoc created_at deleted_at",
    "users": "id email password_hash name is_admin created_at updated_at",
    "users_teams": "user_id team_id is_default role created_at",
    "team_api_keys": "id team_id name key_hash key_prefix created_by created_at last_used",
    "hosts": "id type team_id provider availability_zone arch cpu_cores memory_mb disk_gb address status "
    "last_heartbeat_at metadata created_by created_at updated_at cert_fingerprint mtls_enabled",
    "templates": "name type vcpus memory_mb size_bytes created_at team_id default_user default_env",
    "sandboxes": "id team_id host_id template status vcpus memory_mb timeout_sec guest_ip host_ip created_at "
    "started_at last_active_at last_updated",
}
OURS = {
    "templates": "id host_id build_id disk_size_mb",
    "sandboxes": "template_id status_reason status_slug disk_size_mb idle_action ends_at deadline_action "
    "access_token metadata network envs stopped_at default_user build_id current_build_id "
    "intended_build_id",
    "builds": "id team_id host_id sandbox_id parent_id template_id kind status name vcpus memory_mb size_bytes "
    "created_at",
}
NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)


def new_sandbox(team: TeamId, **changes: Any) -> Sandbox:
    made = Sandbox(
        id=SandboxId(uuid4()),
        team_id=team,
        host_id=HostId(UUID(int=7)),
        template="minimal",
        template_id=TemplateId(UUID(int=0)),
        state=State.PENDING,
        shape=Shape(2, 1024),
        lifetime=Lifetime(60, TimeoutAction.KILL, NOW.timestamp() + 3600, TimeoutAction.PAUSE),
        network=NetworkPolicy(Egress.ALLOW_LIST, ("203.0.113.0/24",)),
        created_at=NOW,
        last_updated=NOW,
        metadata={"purpose": "test", 'odd "key"': "ü"},
        envs={"A": "1"},
        access_token="secret",
        disk_size_mb=2048,
    )
    return replace(made, **changes)


async def new_team(db: Database, slug: str = "") -> TeamId:
    team = TeamId(uuid4())
    async with db.write() as connection:
        await accounts.add_team(connection, team, "Team", slug or team.value.hex)
    return team


async def add(db: Database, *rows: Sandbox) -> None:
    async with db.write() as connection:
        for row in rows:
            await sandboxes.add(connection, row)


async def get(db: Database, row: Sandbox) -> Sandbox:
    async with db.read() as connection:
        found = await sandboxes.get(connection, row.team_id, row.id)
    assert found is not None
    return found


def test_migration_makes_exactly_what_the_tables_say(opened, run):
    def compare(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    def checks(connection: Connection) -> dict[str, set[str]]:
        look = inspect(connection)
        return {t: {str(c["name"]) for c in look.get_check_constraints(t)} for t in metadata.tables}

    async def main() -> None:
        async with opened() as db, db.engine.connect() as connection:
            assert await connection.run_sync(compare) == []
            migrated = await connection.run_sync(checks)
            await connection.rollback()
            async with connection.begin():
                await connection.run_sync(metadata.drop_all)
                await connection.run_sync(metadata.create_all)
                assert await connection.run_sync(checks) == migrated

    run(main())


def test_migrating_again_and_at_once_changes_nothing(opened, database_url, run):
    async def main() -> None:
        async with opened() as first, opened() as second:
            async with asyncio.TaskGroup() as group:
                for db in (first, second, first):
                    group.create_task(db.migrate())
            async with first.read() as connection:
                assert (await connection.execute(text("SELECT count(*) FROM alembic_version"))).scalar_one() == 1
                assert (await connection.execute(text("SELECT count(*) FROM templates"))).scalar_one() == 1

    run(main())


def test_column_names_are_the_published_ones(opened, run):
    def columns(connection: Connection) -> dict[str, set[str]]:
        look = inspect(connection)
        return {t: {c["name"] for c in look.get_columns(t)} for t in look.get_table_names() if t != "alembic_version"}

    async def main() -> None:
        async with opened() as db, db.engine.connect() as connection:
            found = await connection.run_sync(columns)
        tables = PUBLISHED.keys() | OURS.keys()
        wanted = {t: {*PUBLISHED.get(t, "").split(), *OURS.get(t, "").split()} for t in tables}
        assert found == wanted

    run(main())


def test_every_id_and_foreign_key_is_a_uuid(opened, run):
    ids = [
        (table.name, column.name)
        for table in metadata.tables.values()
        for column in table.columns
        if column.name == "id" or column.name.endswith("_id") or column.name == "created_by"
    ]

    def types(connection: Connection) -> dict[tuple[str, str], str]:
        look = inspect(connection)
        return {(t, c["name"]): str(c["type"]) for t in metadata.tables for c in look.get_columns(t)}

    async def main() -> None:
        async with opened() as db, db.engine.connect() as connection:
            found = await connection.run_sync(types)
            wanted = "UUID" if connection.dialect.name == "postgresql" else "CHAR(36)"
            assert {key: found[key] for key in ids} == dict.fromkeys(ids, wanted)

    assert all(isinstance(metadata.tables[t].columns[c].type, UuidType) for t, c in ids)
    run(main())


@pytest.mark.parametrize("value", ["nonsense", "", "00000000-0000-0000-0000-00000000000g", "sb-" + "0" * 33])
def test_the_database_itself_refuses_what_is_no_uuid(opened, run, value):
    async def main() -> None:
        async with opened() as db, db.engine.connect() as connection:
            with pytest.raises(DBAPIError):
                await connection.execute(
                    text("INSERT INTO teams (id, name, slug) VALUES (:id, 'x', 'y')"), {"id": value}
                )

    run(main())


def test_foreign_keys_are_enforced(opened, run):
    async def main() -> None:
        async with opened() as db:
            with pytest.raises(IntegrityError):
                await add(db, new_sandbox(TeamId(uuid4())))

    run(main())


def test_the_platform_team_and_its_template_are_there(opened, run):
    async def main() -> None:
        async with opened() as db:
            team = await new_team(db)
            async with db.read() as connection:
                base = await templates.by_name(connection, team, "base")
                assert base is not None and base.team_id == PLATFORM_TEAM_ID and base.id.value.int == 0
                assert await templates.by_name(connection, team, "minimal") == base
                assert await templates.by_name(connection, team, "other") is None

    run(main())


def test_a_teams_own_template_comes_before_the_platforms_and_is_nobody_elses(opened, run):
    async def main() -> None:
        async with opened() as db:
            team, other = await new_team(db), await new_team(db)
            own = uuid4()
            async with db.write() as connection:
                for name, identity in (("base", own), ("minimal", uuid4())):
                    insert = metadata.tables["templates"].insert()
                    await connection.execute(insert.values(id=identity, name=name, team_id=team.value))
            async with db.read() as connection:
                mine = await templates.by_name(connection, team, "base")
                theirs = await templates.by_name(connection, other, "base")
            assert mine is not None and mine.id.value == own
            assert theirs is not None and theirs.id.value.int == 0

    run(main())


def test_a_sandbox_comes_back_as_it_was_written(opened, run):
    async def main() -> None:
        async with opened() as db:
            row = new_sandbox(await new_team(db))
            await add(db, row)
            assert await get(db, row) == row

    run(main())


def test_a_sandbox_of_another_team_does_not_exist(opened, run):
    async def main() -> None:
        async with opened() as db:
            row, stranger = new_sandbox(await new_team(db)), await new_team(db)
            await add(db, row)
            async with db.write() as connection:
                assert await sandboxes.get(connection, stranger, row.id) is None
                assert await sandboxes.page(connection, stranger, Page(10)) == []
                assert not await sandboxes.set_lifetime(connection, stranger, row.id, Lifetime())

    run(main())


def test_pages_follow_each_other_without_gap_or_repeat(opened, run):
    async def main() -> None:
        async with opened() as db:
            team = await new_team(db)
            # Several in the same microsecond: the id must decide.
            rows = [new_sandbox(team, created_at=NOW + timedelta(microseconds=i // 3)) for i in range(10)]
            await add(db, *rows)
            seen: list[Sandbox] = []
            async with db.read() as connection:
                while page := await sandboxes.page(connection, team, Page(3, after=_position(seen))):
                    assert len(page) <= 3
                    seen += page
            assert len(seen) == 10 and {r.id for r in seen} == {r.id for r in rows}
            assert [r.created_at for r in seen] == sorted((r.created_at for r in rows), reverse=True)

    def _position(seen: list[Sandbox]) -> tuple[datetime, UUID] | None:
        return (seen[-1].created_at, seen[-1].id.value) if seen else None

    run(main())


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ({"purpose": "test"}, True),
        ({'odd "key"': "ü"}, True),
        ({"purpose": "test", "x": "y"}, False),
        ({"x": ""}, False),
    ],
)
def test_labels_filter(opened, run, label, found):
    async def main() -> None:
        async with opened() as db:
            row = new_sandbox(await new_team(db))
            await add(db, row)
            async with db.read() as connection:
                page = await sandboxes.page(connection, row.team_id, Page(10, metadata=label))
            assert [r.id for r in page] == ([row.id] if found else [])

    run(main())


def test_ended_sandboxes_are_listed_only_when_asked_for(opened, run):
    async def main() -> None:
        async with opened() as db:
            team = await new_team(db)
            rows = {state: new_sandbox(team, state=state) for state in State}
            await add(db, *rows.values())
            async with db.read() as connection:
                usual = await sandboxes.page(connection, team, Page(100))
                ended = await sandboxes.page(connection, team, Page(100, states=frozenset({State.ERROR})))
            assert {r.state for r in usual} == set(State) - {State.STOPPED, State.ERROR}
            assert [r.id for r in ended] == [rows[State.ERROR].id]

    run(main())


def test_of_two_moves_one_wins(opened, run):
    async def main() -> None:
        async with opened() as db:
            row = new_sandbox(await new_team(db))
            await add(db, row)
            async with db.write() as connection:
                change = Change(host_ip="10.11.0.3", shape=Shape(4, 2048), started=True)
                assert await sandboxes.move(connection, row.id, {State.PENDING}, State.RUNNING, change)
                assert not await sandboxes.move(connection, row.id, {State.PENDING}, State.ERROR)
            now = await get(db, row)
            assert (now.state, now.host_ip, now.shape) == (State.RUNNING, "10.11.0.3", Shape(4, 2048))
            assert now.started_at is not None and now.started_at == now.last_active_at == now.last_updated

    run(main())


def test_a_move_on_condition_of_an_unchanged_row(opened, run):
    async def main() -> None:
        async with opened() as db:
            row = new_sandbox(await new_team(db), state=State.RUNNING)
            await add(db, row)
            async with db.write() as connection:
                assert await sandboxes.set_lifetime(connection, row.team_id, row.id, Lifetime(9))
                moved = await sandboxes.move(
                    connection, row.id, {State.RUNNING}, State.ERROR, unchanged_since=row.last_updated
                )
                assert not moved
            read = await get(db, row)
            async with db.write() as connection:
                change = Change("it broke", "vmm_died")
                assert await sandboxes.move(
                    connection, row.id, {State.RUNNING}, State.ERROR, change, unchanged_since=read.last_updated
                )
            now = await get(db, row)
            assert (now.state, now.status_reason, now.status_slug) == (State.ERROR, "it broke", "vmm_died")
            assert now.stopped_at is not None and now.lifetime.idle_timeout_s == 9

    run(main())


def test_a_move_that_the_lifecycle_does_not_know_is_refused(opened, run):
    async def main() -> None:
        async with opened() as db, db.write() as connection:
            with pytest.raises(ValueError, match="no way"):
                await sandboxes.move(connection, SandboxId(uuid4()), {State.STOPPED}, State.RUNNING)

    run(main())


def test_concurrent_writers_all_get_their_turn(opened, run):
    async def main() -> None:
        async with opened() as db:
            team = await new_team(db)
            async with asyncio.TaskGroup() as group:
                for _ in range(25):
                    group.create_task(add(db, new_sandbox(team)))
            async with db.read() as connection:
                assert len(await sandboxes.page(connection, team, Page(100))) == 25

    run(main())


def test_a_failed_transaction_leaves_nothing(opened, run):
    async def main() -> None:
        async with opened() as db:
            row = new_sandbox(await new_team(db))
            with pytest.raises(RuntimeError):
                async with db.write() as connection:
                    await sandboxes.add(connection, row)
                    raise RuntimeError
            async with db.read() as connection:
                assert await sandboxes.get(connection, row.team_id, row.id) is None

    run(main())


def test_rows_of_a_host_and_notes_and_activity(opened, run):
    async def main() -> None:
        async with opened() as db:
            team = await new_team(db)
            pending, running = new_sandbox(team), new_sandbox(team, state=State.RUNNING)
            await add(db, pending, running, new_sandbox(team, host_id=HostId(uuid4())))
            async with db.write() as connection:
                await sandboxes.note(connection, pending.id, State.PENDING, "preparing")
                await sandboxes.note(connection, running.id, State.PENDING, "not for this one")
                await sandboxes.active_at(connection, {running.id: NOW + timedelta(hours=1)})
                rows = await sandboxes.of_host(connection, pending.host_id, {State.PENDING, State.RUNNING})
            found = {r.id: r for r in rows}
            assert found.keys() == {pending.id, running.id}
            assert found[pending.id].status_reason == "preparing" and found[running.id].status_reason == ""
            assert found[pending.id].last_updated == NOW  # a note does not make a row younger
            assert found[running.id].last_active_at == NOW + timedelta(hours=1)

    run(main())


def test_keys_are_found_by_hash_and_removed_by_team(opened, run):
    async def main() -> None:
        async with opened() as db:
            team, stranger, user = await new_team(db), await new_team(db), UserId(uuid4())
            key = ApiKey(ApiKeyId(uuid4()), team, "mine", "wrn_abcdef", user, NOW, None)
            async with db.write() as connection:
                await accounts.add_user(connection, user, "a@b", "A")
                await accounts.add_member(connection, team, user, "owner")
                await api_keys.add(connection, key, "hash")
                assert await accounts.first_owner(connection) == (team, user)
            async with db.write() as connection:
                assert await api_keys.by_hash(connection, "hash") == key
                assert await api_keys.by_hash(connection, "other") is None
                assert await api_keys.of_team(connection, stranger) == []
                assert not await api_keys.remove(connection, stranger, key.id)
                await api_keys.touch(connection, {key.id: NOW})
                assert (await api_keys.of_team(connection, team))[0].last_used == NOW
                assert await api_keys.count(connection, team) == 1
                assert await api_keys.remove(connection, team, key.id)

    run(main())


def test_the_host_is_made_once_and_follows_its_agent(opened, run):
    async def main() -> None:
        async with opened() as db:
            user = UserId(uuid4())
            async with db.write() as connection:
                await accounts.add_user(connection, user, "a@b", "A")
                host = await hosts.ensure(connection, HostId(uuid4()), "http://a", user)
                assert await hosts.ensure(connection, HostId(uuid4()), "http://b", user) == host
                assert await hosts.status(connection, host) is HostStatus.PENDING
                await hosts.heard_from(connection, host, HostFacts("x86_64", 2, 4096, 100), NOW)
                assert await hosts.status(connection, host) is HostStatus.ONLINE
                await hosts.lost(connection, host, NOW)
                assert await hosts.status(connection, host) is HostStatus.UNREACHABLE

    run(main())
