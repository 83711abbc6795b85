"""Each step of a snapshot failed and cancelled: a name is there with its build, or neither is."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pytest

from tests.unit.controlplane.conftest import World, all_settled
from tests.unit.controlplane.moments import a_paused_one, all_builds, build, kept, left_by_its_caller, obedient, row_of
from tests.unit.controlplane.usecases.test_find_sandboxes import STRANGER, made, move
from wrenn_sandbox.controlplane.usecases.create_sandbox import Wish, create_sandbox
from wrenn_sandbox.controlplane.usecases.find_snapshots import list_snapshots
from wrenn_sandbox.controlplane.usecases.take_snapshot import SnapshotWish, take_snapshot
from wrenn_sandbox.core.errors import AlreadyExists, Conflict, Exhausted, Invalid, NotFound, Unavailable
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.db.builds import Kind, Status
from wrenn_sandbox.db.templates import Template, Type
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

NAMED = SnapshotWish("moment-1")


async def own(w: World) -> list[Template]:
    """The team's own templates."""
    return [template for template in await list_snapshots(w.platform, w.team) if not template.platform]


async def idle(w: World) -> None:
    """Let what was begun without a caller come to its end."""
    await all_settled(w)


def test_the_template_appears_when_its_build_is_durable_and_the_sandbox_runs_on(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)

            async def keep(request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
                (intended,) = (await all_builds(w)).values()
                assert (intended.status, intended.kind, intended.name) == (Status.CREATING, Kind.SNAPSHOT, "moment-1")
                assert intended.template_id is not None and request.template_id == str(intended.template_id.value)
                assert (request.name, request.leave_paused) == ("moment-1", False)
                assert await own(w) == [] and (await row_of(w, row.id)).state is State.RUNNING
                return kept(request)

            w.agent.answers["CreateSnapshot"] = keep
            template = await take_snapshot(w.platform, w.team, row.id, NAMED)
            assert await own(w) == [template]
            assert (template.name, template.type, template.shape) == ("moment-1", Type.SNAPSHOT, row.shape)
            assert (template.host_id, template.size_bytes) == (w.platform.host_id, 7)
            after = await row_of(w, row.id)
            assert (after.state, after.build_id, after.current_build_id) == (State.RUNNING, *[template.build_id] * 2)
            (recorded,) = (await all_builds(w)).values()
            assert (recorded.id, recorded.status, recorded.name) == (template.build_id, Status.READY, "")

    asyncio.run(main())


def test_user_and_environment_of_the_sandbox_are_handed_on(world) -> None:
    async def main() -> None:
        async with world() as w:
            await made(w)
            source = (await create_sandbox(w.platform, w.team, Wish(envs={"A": "1", "B": "2"}))).sandbox
            obedient(w)
            await take_snapshot(w.platform, w.team, source.id, NAMED)
            child = (await create_sandbox(w.platform, w.team, Wish("moment-1", envs={"B": "3"}))).sandbox
            assert child.envs == {"A": "1", "B": "3"} and child.access_token != source.access_token

    asyncio.run(main())


def test_without_a_name_it_gets_one(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            names = {(await take_snapshot(w.platform, w.team, row.id, SnapshotWish())).name for _ in range(3)}
            assert len(names) == 3 and all(re.fullmatch("template-[0-9a-f]{8}", name) for name in names)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["-x", "x" * 65, "ü", "a/b", "a b", ".x", "x\n", "٣"])
def test_names_have_a_form(world, name: str) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            with pytest.raises(Invalid) as caught:
                await take_snapshot(w.platform, w.team, row.id, SnapshotWish(name))
            assert caught.value.slug == "invalid_name" and w.agent.requests("CreateSnapshot") == []

    asyncio.run(main())


def test_checks_come_in_the_published_order(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            await take_snapshot(w.platform, w.team, row.id, NAMED)
            unknown, stopped = SandboxId(STRANGER.value), await made(w)
            await move(w, stopped, State.STOPPED)
            for sandbox, wish, slug in (
                (unknown, SnapshotWish("a b"), "invalid_name"),
                (unknown, SnapshotWish("base"), "name_reserved"),
                (unknown, SnapshotWish("minimal", overwrite=True), "name_reserved"),
                (unknown, NAMED, "already_exists"),
                (unknown, replace(NAMED, overwrite=True), "not_found"),
                (stopped.id, SnapshotWish("other"), "invalid_state"),
            ):
                with pytest.raises((Invalid, Conflict, NotFound)) as caught:
                    await take_snapshot(w.platform, w.team, sandbox, wish)
                assert caught.value.slug == slug
            with pytest.raises(NotFound):
                await take_snapshot(w.platform, STRANGER, row.id, SnapshotWish("other"))
            assert len(w.agent.requests("CreateSnapshot")) == 1

    asyncio.run(main())


def test_leaving_it_paused_is_a_pause(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            seen: list[State] = []

            async def keep(request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
                seen.append((await row_of(w, row.id)).state)
                assert request.leave_paused
                return kept(request)

            w.agent.answers["CreateSnapshot"] = keep
            template = await take_snapshot(w.platform, w.team, row.id, replace(NAMED, leave_paused=True))
            after = await row_of(w, row.id)
            assert seen == [State.PAUSING]
            assert (after.state, after.build_id, after.host_ip) == (State.PAUSED, template.build_id, "")

    asyncio.run(main())


def test_a_paused_one_gives_the_build_it_has(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            assert row.build_id is not None
            existing = build(str(row.build_id.value), str(row.id))
            w.agent.answers["CreateSnapshot"] = pb.CreateSnapshotResponse(build=existing)
            template = await take_snapshot(w.platform, w.team, row.id, replace(NAMED, leave_paused=True))
            assert template.build_id == row.build_id
            ((recorded),) = (await all_builds(w)).values()
            assert (recorded.id, recorded.kind) == (row.build_id, Kind.PAUSE)
            assert (await row_of(w, row.id)).state is State.PAUSED

    asyncio.run(main())


def test_a_replaced_template_stays_until_the_new_one_is_durable(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            old = await take_snapshot(w.platform, w.team, row.id, NAMED)
            with pytest.raises(AlreadyExists) as caught:
                await take_snapshot(w.platform, w.team, row.id, NAMED)
            assert caught.value.slug == "already_exists"
            w.agent.answers["CreateSnapshot"] = Exhausted("full")
            with pytest.raises(Exhausted):
                await take_snapshot(w.platform, w.team, row.id, replace(NAMED, overwrite=True))
            assert await own(w) == [old] and w.agent.requests("DeleteSnapshot") == []
            w.agent.answers["CreateSnapshot"] = kept
            new = await take_snapshot(w.platform, w.team, row.id, replace(NAMED, overwrite=True))
            assert await own(w) == [new] and new.id != old.id
            await idle(w)
            assert [r.template_id for r in w.agent.requests("DeleteSnapshot")] == [str(old.id.value)]

    asyncio.run(main())


def test_of_two_snapshots_of_a_name_one_is_told(world) -> None:
    async def main() -> None:
        async with world() as w:
            row, other = await made(w), await made(w)

            async def keep(request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
                for overwrite in (False, True):
                    with pytest.raises(AlreadyExists, match="being made"):
                        await take_snapshot(w.platform, w.team, other.id, replace(NAMED, overwrite=overwrite))
                return kept(request)

            w.agent.answers["CreateSnapshot"] = keep
            await take_snapshot(w.platform, w.team, row.id, NAMED)
            assert len(await own(w)) == 1 and len(w.agent.requests("CreateSnapshot")) == 1

    asyncio.run(main())


@pytest.mark.parametrize("failure", [Exhausted("x"), Conflict("x"), Unavailable("silent"), RuntimeError("x")], ids=repr)
@pytest.mark.parametrize("leave_paused", [False, True])
def test_a_failed_snapshot_leaves_it_running(world, failure: Exception, leave_paused: bool) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["CreateSnapshot"] = failure
            with pytest.raises(type(failure)):
                await take_snapshot(w.platform, w.team, row.id, replace(NAMED, leave_paused=leave_paused))
            after = await row_of(w, row.id)
            assert (after.state, after.build_id, after.status_reason) == (State.RUNNING, None, "")
            assert await own(w) == []
            answered = isinstance(failure, Exhausted | Conflict)
            assert len(await all_builds(w)) == (0 if answered else 1), "what nobody answered is settled later"

    asyncio.run(main())


@pytest.mark.parametrize("fails", [None, Exhausted("x")])
def test_a_caller_who_leaves_does_not_stop_it(world, fails: Exception | None) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            await left_by_its_caller(
                w, "CreateSnapshot", lambda: take_snapshot(w.platform, w.team, row.id, NAMED), row.id, fails=fails
            )
            assert len(await own(w)) == len(await all_builds(w)) == (0 if fails else 1)

    asyncio.run(main())


def test_a_sandbox_that_keeps_no_hold_has_no_build_of_its_own(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)

            def keep(request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
                holders = (f"tpl-{request.template_id}",)
                return pb.CreateSnapshotResponse(build=build(request.build_id, str(row.id), holders=holders))

            w.agent.answers["CreateSnapshot"] = keep
            template = await take_snapshot(w.platform, w.team, row.id, NAMED)
            after = await row_of(w, row.id)
            assert (after.build_id, after.current_build_id) == (None, template.build_id)

    asyncio.run(main())
