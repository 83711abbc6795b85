"""The carrying-out; what is decided is tested with ``core.reconcile``."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from tests.unit.controlplane.conftest import World
from tests.unit.controlplane.moments import a_paused_one, all_builds, build, kept, obedient, row_of
from tests.unit.controlplane.usecases.test_find_sandboxes import made
from tests.unit.controlplane.usecases.test_take_snapshot import NAMED, idle, own
from wrenn_sandbox.controlplane.intents import intent
from wrenn_sandbox.controlplane.inventory import Inventory
from wrenn_sandbox.controlplane.usecases.delete_snapshot import delete_snapshot
from wrenn_sandbox.controlplane.usecases.destroy_sandbox import destroy_sandbox
from wrenn_sandbox.controlplane.usecases.take_snapshot import take_snapshot
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.ids import SandboxId, TemplateId
from wrenn_sandbox.core.reconcile import Timing
from wrenn_sandbox.db import builds, sandboxes
from wrenn_sandbox.db.builds import Build, Kind, Status
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

AT_ONCE = Timing(0.0, 0.0, 0.0, 0.0)


def listing(w: World, *messages: pb.Build) -> None:
    w.agent.answers["ListBuilds"] = pb.ListBuildsResponse(builds=list(messages))


async def abandoned(w: World, answer: object = None) -> Build:
    """The intent of a snapshot that the host has answered with silence."""
    row = await made(w)
    w.agent.answers["CreateSnapshot"] = answer or Unavailable("silent")
    with pytest.raises(Unavailable):
        await take_snapshot(w.platform, w.team, row.id, replace(NAMED, overwrite=True))
    intents = [found for found in (await all_builds(w)).values() if found.status is Status.CREATING]
    assert len(intents) == 1 and intents[0].template_id is not None
    return intents[0]


def test_a_snapshot_that_was_made_after_all_becomes_a_template(world) -> None:
    async def main() -> None:
        async with world() as w:
            intended = await abandoned(w)
            message = build(str(intended.id.value), holders=(f"tpl-{intended.template_id.value}",))  # type: ignore[union-attr]
            listing(w, message, build("nonsense"))
            await Inventory(w.platform, AT_ONCE).tick()
            (template,) = await own(w)
            assert (template.id, template.name, template.build_id) == (intended.template_id, "moment-1", intended.id)
            assert (await all_builds(w))[intended.id.value].status is Status.READY
            assert (await row_of(w, intended.sandbox_id)).current_build_id == intended.id
            await Inventory(w.platform, AT_ONCE).tick()
            assert await own(w) == [template] and w.agent.requests("DeleteSnapshot") == []

    asyncio.run(main())


def test_one_that_was_not_made_frees_its_name(world) -> None:
    async def main() -> None:
        async with world() as w:
            intended = await abandoned(w)
            listing(w)
            await Inventory(w.platform).tick()
            assert len(await all_builds(w)) == 1, "not at once"
            await Inventory(w.platform, AT_ONCE).tick()
            assert await all_builds(w) == {} and await own(w) == []
            w.agent.answers["CreateSnapshot"] = kept
            await take_snapshot(w.platform, w.team, intended.sandbox_id, NAMED)

    asyncio.run(main())


def test_one_of_a_paused_sandbox_keeps_the_build_there_is(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            w.agent.answers["CreateSnapshot"] = Unavailable("silent")
            with pytest.raises(Unavailable):
                await take_snapshot(w.platform, w.team, row.id, NAMED)
            (intended,) = [found for found in (await all_builds(w)).values() if found.status is Status.CREATING]
            assert row.build_id is not None and intended.template_id is not None
            listing(w, build(str(row.build_id.value), holders=(str(row.id), str(intended.template_id))))
            await Inventory(w.platform, AT_ONCE).tick()
            (template,) = await own(w)
            assert template.build_id == row.build_id
            assert [found.kind for found in (await all_builds(w)).values()] == [Kind.PAUSE]
            assert await row_of(w, row.id) == row

    asyncio.run(main())


def test_a_replacement_that_was_made_after_all_replaces(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            old = await take_snapshot(w.platform, w.team, row.id, NAMED)
            intended = await abandoned(w)
            held = build(str(intended.id.value), holders=(str(intended.template_id),))
            listing(w, held, build(str(old.build_id.value), holders=(str(old.id),)))  # type: ignore[union-attr]
            await Inventory(w.platform, AT_ONCE).tick()
            (template,) = await own(w)
            assert template.id == intended.template_id
            await idle(w)
            assert [r.template_id for r in w.agent.requests("DeleteSnapshot")] == [str(old.id.value)]

    asyncio.run(main())


def test_a_deleted_template_that_the_host_still_has_is_deleted_again(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            template = await take_snapshot(w.platform, w.team, row.id, NAMED)
            w.agent.answers["DeleteSnapshot"] = Unavailable("silent")
            await delete_snapshot(w.platform, w.team, "moment-1")
            listing(w, build(str(template.build_id.value), holders=(str(template.id), "tpl-x", "other")))  # type: ignore[union-attr]
            await Inventory(w.platform).tick()
            assert len(w.agent.requests("DeleteSnapshot")) == 1, "not at once"
            del w.agent.answers["DeleteSnapshot"]
            await Inventory(w.platform, AT_ONCE).tick()
            await idle(w)
            sent = [request.template_id for request in w.agent.requests("DeleteSnapshot")]
            assert sent == [str(template.id.value)] * 2

    asyncio.run(main())


def test_a_build_that_nothing_needs_goes_with_the_hosts(world) -> None:
    async def main() -> None:
        async with world() as w:
            gone, needed = await a_paused_one(w), await a_paused_one(w)
            listing(w)
            await Inventory(w.platform, AT_ONCE).tick()
            assert len(await all_builds(w)) == 2, "both may be wanted"
            await destroy_sandbox(w.platform, w.team, gone.id)
            await Inventory(w.platform, AT_ONCE).tick()
            assert list(await all_builds(w)) == [needed.build_id.value]  # type: ignore[union-attr]

    asyncio.run(main())


def test_size_and_parent_follow_the_host(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            assert row.build_id is not None
            parent = "22222222-2222-4222-8222-222222222222"
            listing(w, build(str(row.build_id.value), parent=parent, size=99))
            await Inventory(w.platform, AT_ONCE).tick()
            (found,) = (await all_builds(w)).values()
            assert (found.size_bytes, str(found.parent_id.value), found.kind) == (99, parent, Kind.PAUSE)  # type: ignore[union-attr]

    asyncio.run(main())


def test_what_a_request_works_on_is_left_alone(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)

            async def keep(request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
                listing(w)
                await Inventory(w.platform, AT_ONCE).tick()
                return kept(request)

            w.agent.answers["CreateSnapshot"] = keep
            await take_snapshot(w.platform, w.team, row.id, NAMED)
            assert len(await own(w)) == 1

    asyncio.run(main())


def test_an_intent_that_another_settles_meanwhile_is_settled_once(world) -> None:
    async def main() -> None:
        async with world() as w:
            intended = await abandoned(w)

            async def list_(_request: object) -> pb.ListBuildsResponse:
                async with w.platform.db.write() as connection:
                    await builds.forget(connection, [intended.id])
                return pb.ListBuildsResponse(
                    builds=[build(str(intended.id.value), holders=(str(intended.template_id),))]
                )

            w.agent.answers["ListBuilds"] = list_
            await Inventory(w.platform, AT_ONCE).tick()
            assert await own(w) == [] and await all_builds(w) == {}

    asyncio.run(main())


def test_an_intent_of_a_fork_is_recorded(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            intended = intent(row, Kind.FORK)
            async with w.platform.db.write() as connection:
                await builds.begin(connection, intended)
            listing(w, build(str(intended.id.value), str(row.id)))
            await Inventory(w.platform, AT_ONCE).tick()
            assert (await all_builds(w))[intended.id.value].status is Status.READY
            assert (await row_of(w, row.id)).current_build_id == intended.id

    asyncio.run(main())


@pytest.mark.parametrize("needed", [True, False])
def test_a_moment_kept_without_its_template_frees_the_name(world, needed: bool) -> None:
    async def main() -> None:
        async with world() as w:
            intended = await abandoned(w)
            if needed:  # the reconciler has seen that the sandbox has it
                async with w.platform.db.write() as connection:
                    await sandboxes.descend(connection, intended.sandbox_id, build=intended.id, current=intended.id)
            listing(w, build(str(intended.id.value), str(intended.sandbox_id), holders=(str(intended.sandbox_id),)))
            await Inventory(w.platform, AT_ONCE).tick()
            assert await own(w) == []
            found = (await all_builds(w))[intended.id.value]
            assert (found.status, found.name, found.template_id) == (Status.READY, "", None)
            assert (await row_of(w, intended.sandbox_id)).current_build_id == intended.id
            w.agent.answers["CreateSnapshot"] = kept
            await take_snapshot(w.platform, w.team, intended.sandbox_id, NAMED)

    asyncio.run(main())


def test_templates_of_a_lost_database_are_left_alone(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            foreign, orphan = TemplateId(UUID(int=1)), TemplateId(UUID(int=2))
            listing(
                w,
                build(str(UUID(int=5)), str(SandboxId(UUID(int=6))), holders=(str(foreign),)),
                build(str(UUID(int=7)), str(row.id), holders=(str(orphan),)),
            )
            with capture_logs() as said:
                await Inventory(w.platform, AT_ONCE).tick()
            await idle(w)
            assert [r.template_id for r in w.agent.requests("DeleteSnapshot")] == [str(orphan.value)]
            assert [line["some"] for line in said if "does not know" in line["event"]] == [[str(foreign)]]

    asyncio.run(main())
