"""Each step of a pause failed and cancelled: whatever happens, the sandbox runs as before or is paused for good."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.controlplane.moments import (
    a_paused_one,
    all_builds,
    build,
    left_by_its_caller,
    obedient,
    paused,
    row_of,
)
from tests.unit.controlplane.usecases.test_find_sandboxes import STRANGER, made
from wrenn_sandbox.controlplane.usecases.destroy_sandbox import destroy_sandbox
from wrenn_sandbox.controlplane.usecases.pause_sandbox import pause_sandbox
from wrenn_sandbox.core.errors import Bug, Conflict, Exhausted, NoSpace, NotFound, Timeout, Unavailable
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.db import sandboxes
from wrenn_sandbox.db.builds import Kind, Status
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


def test_the_intent_is_written_first_and_paused_is_said_last(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            seen: list[tuple[State, Status]] = []

            async def pause(request: pb.PauseSandboxRequest) -> pb.PauseSandboxResponse:
                (intended,) = (await all_builds(w)).values()
                assert str(intended.id.value) == request.build_id and intended.sandbox_id == row.id
                seen.append(((await row_of(w, row.id)).state, intended.status))
                return paused(request)

            w.agent.answers["PauseSandbox"] = pause
            after = await pause_sandbox(w.platform, w.team, row.id)
            assert seen == [(State.PAUSING, Status.CREATING)]
            (kept,) = (await all_builds(w)).values()
            assert (kept.status, kept.kind, kept.size_bytes) == (Status.READY, Kind.PAUSE, 7)
            assert after == await row_of(w, row.id)
            assert (after.state, after.host_ip) == (State.PAUSED, "")
            assert after.build_id == after.current_build_id == kept.id
            assert w.platform.rows.get(row.id) is None and not w.platform.settling.is_busy(row.id)

    asyncio.run(main())


@pytest.mark.parametrize(
    "failure",
    [
        Unavailable("silent"),
        Timeout("slow", slug="guest_timeout"),
        NoSpace("the host's disk is full", slug="host_disk_full"),
        Exhausted("x"),
        NotFound("unknown", slug="sandbox_not_found"),
        RuntimeError("unexpected"),
        pb.PauseSandboxResponse(),
        pb.PauseSandboxResponse(build=pb.Build(build_id="nonsense")),
    ],
    ids=str,
)
def test_a_failed_pause_leaves_it_running_with_what_it_had(world, failure: object) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["PauseSandbox"] = failure
            with pytest.raises(type(failure) if isinstance(failure, Exception) else Bug):
                await pause_sandbox(w.platform, w.team, row.id)
            after = await row_of(w, row.id)
            assert (after.state, after.status_reason, after.build_id) == (State.RUNNING, "", None)
            assert (after.host_ip, after.lifetime, after.started_at) == (row.host_ip, row.lifetime, row.started_at)
            assert await all_builds(w) == {} and w.agent.requests("DestroySandbox") == []

    asyncio.run(main())


def test_a_failed_pause_keeps_the_earlier_build(world) -> None:
    async def main() -> None:
        async with world() as w:
            before = await a_paused_one(w)
            async with w.platform.db.write() as connection:
                await sandboxes.move(connection, before.id, {State.PAUSED}, State.RUNNING)
            w.agent.answers["PauseSandbox"] = NoSpace("full", slug="host_disk_full")
            with pytest.raises(NoSpace):
                await pause_sandbox(w.platform, w.team, before.id)
            after = await row_of(w, before.id)
            assert (after.state, after.build_id) == (State.RUNNING, before.build_id)
            assert [found.status for found in (await all_builds(w)).values()] == [Status.READY]

    asyncio.run(main())


@pytest.mark.parametrize("fails", [None, Exhausted("x")])
def test_a_caller_who_leaves_does_not_stop_it(world, fails: Exception | None) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            await left_by_its_caller(
                w, "PauseSandbox", lambda: pause_sandbox(w.platform, w.team, row.id), row.id, fails=fails
            )
            assert (await row_of(w, row.id)).state is (State.RUNNING if fails else State.PAUSED)

    asyncio.run(main())


def test_of_two_pauses_one_is_told(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)

            async def pause(request: pb.PauseSandboxRequest) -> pb.PauseSandboxResponse:
                with pytest.raises(Conflict, match="pausing"):
                    await pause_sandbox(w.platform, w.team, row.id)
                return paused(request)

            w.agent.answers["PauseSandbox"] = pause
            await pause_sandbox(w.platform, w.team, row.id)
            with pytest.raises(Conflict, match="paused"):
                await pause_sandbox(w.platform, w.team, row.id)
            with pytest.raises(NotFound):
                await pause_sandbox(w.platform, STRANGER, row.id)
            assert len(w.agent.requests("PauseSandbox")) == 1

    asyncio.run(main())


def test_one_destroyed_while_it_is_paused_stays_destroyed(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)

            async def pause(request: pb.PauseSandboxRequest) -> pb.PauseSandboxResponse:
                await destroy_sandbox(w.platform, w.team, row.id)
                return paused(request)

            w.agent.answers["PauseSandbox"] = pause
            with pytest.raises(Conflict) as caught:
                await pause_sandbox(w.platform, w.team, row.id)
            assert caught.value.slug == "sandbox_destroyed"
            assert (await row_of(w, row.id)).state is State.STOPPED

    asyncio.run(main())


def test_a_paused_one_can_be_destroyed(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            await destroy_sandbox(w.platform, w.team, row.id)
            assert (await row_of(w, row.id)).state is State.STOPPED
            assert [r.sandbox_id for r in w.agent.requests("DestroySandbox")] == [str(row.id)]

    asyncio.run(main())


def test_a_database_that_fails_after_the_agent_leaves_the_row_to_the_reconciler(world, monkeypatch) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            real = sandboxes.move

            async def fail(
                connection: object, sandbox: object, expected: set[State], *more: object, **_: object
            ) -> bool:
                if expected == {State.PAUSING}:
                    raise Unavailable("no database", slug="database_unavailable")
                return await real(connection, sandbox, expected, *more)  # type: ignore[arg-type]

            obedient(w)
            monkeypatch.setattr(sandboxes, "move", fail)
            with pytest.raises(Unavailable):
                await pause_sandbox(w.platform, w.team, row.id)
            assert (await row_of(w, row.id)).state is State.PAUSING
            (intended,) = (await all_builds(w)).values()
            assert intended.status is Status.CREATING

    asyncio.run(main())


def test_a_build_under_another_name_is_what_counts(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            other = "11111111-1111-4111-8111-111111111111"
            w.agent.answers["PauseSandbox"] = pb.PauseSandboxResponse(build=build(other, str(row.id)))
            after = await pause_sandbox(w.platform, w.team, row.id)
            assert after.build_id is not None and str(after.build_id.value) == other
            assert [str(found) for found in await all_builds(w)] == [other]

    asyncio.run(main())
