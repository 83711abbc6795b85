from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest

from tests.unit.controlplane.conftest import World
from tests.unit.controlplane.moments import a_paused_one, left_by_its_caller, obedient, row_of
from tests.unit.controlplane.usecases.test_find_sandboxes import STRANGER, made, move
from wrenn_sandbox.controlplane.intents import is_certain
from wrenn_sandbox.controlplane.usecases.destroy_sandbox import destroy_sandbox
from wrenn_sandbox.controlplane.usecases.fork_sandbox import ForkWish, fork_sandbox
from wrenn_sandbox.controlplane.usecases.resume_sandbox import resume_sandbox
from wrenn_sandbox.controlplane.usecases.rollback_sandbox import rollback_sandbox
from wrenn_sandbox.controlplane.usecases.take_snapshot import SnapshotWish, take_snapshot
from wrenn_sandbox.core.errors import Conflict, Exhausted, NotFound, Unavailable
from wrenn_sandbox.core.ids import BuildId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.db.sandboxes import Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


async def with_history(w: World) -> tuple[Sandbox, BuildId]:
    """A running sandbox with a pause and a snapshot behind it, and the build of the pause."""
    paused = await a_paused_one(w)
    await resume_sandbox(w.platform, w.team, paused.id)
    await take_snapshot(w.platform, w.team, paused.id, SnapshotWish("named"))
    assert paused.build_id is not None
    w.agent.calls.clear()
    return await row_of(w, paused.id), paused.build_id


def test_a_running_one_goes_back_in_place(world) -> None:
    async def main() -> None:
        async with world() as w:
            row, earlier = await with_history(w)
            after = await rollback_sandbox(w.platform, w.team, row.id, str(earlier))
            assert (after.id, after.state, after.host_ip) == (row.id, State.RUNNING, "10.11.0.4")
            assert (after.access_token, after.lifetime) == (row.access_token, row.lifetime)
            assert after.current_build_id == earlier
            back = await rollback_sandbox(w.platform, w.team, row.id, "named")
            assert back.current_build_id == row.current_build_id
            sent = [request.build_id for request in w.agent.requests("RollbackSandbox")]
            assert sent == [str(earlier.value), str(row.current_build_id.value)]  # type: ignore[union-attr]

    asyncio.run(main())


def test_a_child_goes_back_to_its_birth(world) -> None:
    async def main() -> None:
        async with world() as w:
            source = await made(w)
            obedient(w)
            (child,) = await fork_sandbox(w.platform, w.team, source.id, ForkWish(1))
            after = await rollback_sandbox(w.platform, w.team, child.id, str(child.current_build_id))
            assert after.current_build_id == child.current_build_id

    asyncio.run(main())


def test_what_does_not_run_is_resumed_from_that_moment(world) -> None:
    async def main() -> None:
        async with world() as w:
            row, earlier = await with_history(w)
            await move(w, row, State.ERROR)
            w.platform.rows.drop(row.id)
            after = await rollback_sandbox(w.platform, w.team, row.id, str(earlier))
            assert (after.state, after.current_build_id) == (State.RUNNING, earlier)
            (request,) = w.agent.requests("ResumeSandbox")
            assert request.sandbox.build_id == str(earlier.value)
            assert w.agent.requests("RollbackSandbox") == []

    asyncio.run(main())


def test_only_moments_of_its_own_history(world) -> None:
    async def main() -> None:
        async with world() as w:
            row, earlier = await with_history(w)
            other, _ = await a_paused_one(w), None
            for snapshot in ("nothing", "base", str(BuildId(UUID(int=5))), str(other.build_id), str(earlier.value)):
                with pytest.raises(NotFound) as caught:
                    await rollback_sandbox(w.platform, w.team, row.id, snapshot)
                assert caught.value.slug == "snapshot_not_found"
            with pytest.raises(NotFound):
                await rollback_sandbox(w.platform, STRANGER, row.id, str(earlier))
            assert w.agent.requests("RollbackSandbox") == []

    asyncio.run(main())


@pytest.mark.parametrize("failure", [Exhausted("full"), Unavailable("silent"), RuntimeError("x")], ids=repr)
def test_a_failed_rollback_leaves_it_as_it_was(world, failure: Exception) -> None:
    async def main() -> None:
        async with world() as w:
            row, earlier = await with_history(w)
            w.agent.answers["RollbackSandbox"] = failure
            with pytest.raises(type(failure)):
                await rollback_sandbox(w.platform, w.team, row.id, str(earlier))
            after = await row_of(w, row.id)
            assert after == replace(
                row, last_updated=after.last_updated, intended_build_id=None if is_certain(failure) else earlier
            )

    asyncio.run(main())


def test_the_row_names_the_moment_before_the_host_is_asked(world) -> None:
    async def main() -> None:
        async with world() as w:
            row, earlier = await with_history(w)

            async def roll_back(_request: object) -> pb.RollbackSandboxResponse:
                during = await row_of(w, row.id)
                assert (during.state, during.intended_build_id) == (State.RUNNING, earlier)
                assert during.last_updated > row.last_updated and w.platform.settling.is_busy(row.id)
                return pb.RollbackSandboxResponse(host_ip="10.11.0.4")

            w.agent.answers["RollbackSandbox"] = roll_back
            after = await rollback_sandbox(w.platform, w.team, row.id, str(earlier))
            assert (after.intended_build_id, after.build_id, after.current_build_id) == (None, earlier, earlier)

    asyncio.run(main())


@pytest.mark.parametrize("fails", [None, Exhausted("x")])
def test_a_caller_who_leaves_does_not_stop_it(world, fails: Exception | None) -> None:
    async def main() -> None:
        async with world() as w:
            row, earlier = await with_history(w)
            await left_by_its_caller(
                w,
                "RollbackSandbox",
                lambda: rollback_sandbox(w.platform, w.team, row.id, str(earlier)),
                row.id,
                fails=fails,
            )
            assert (await row_of(w, row.id)).current_build_id == (row.current_build_id if fails else earlier)

    asyncio.run(main())


def test_one_destroyed_meanwhile_is_said_to_have_ended(world) -> None:
    async def main() -> None:
        async with world() as w:
            row, earlier = await with_history(w)

            async def roll_back(_request: object) -> pb.RollbackSandboxResponse:
                await destroy_sandbox(w.platform, w.team, row.id)
                return pb.RollbackSandboxResponse()

            w.agent.answers["RollbackSandbox"] = roll_back
            with pytest.raises(Conflict) as caught:
                await rollback_sandbox(w.platform, w.team, row.id, str(earlier))
            assert caught.value.slug == "sandbox_ended"
            with pytest.raises(Conflict):
                await rollback_sandbox(w.platform, w.team, row.id, str(earlier))

    asyncio.run(main())
