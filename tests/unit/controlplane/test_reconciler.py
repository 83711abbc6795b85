"""The carrying-out; what is decided is tested with ``core.reconcile``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from tests.unit.controlplane.conftest import World, all_settled
from tests.unit.controlplane.moments import a_paused_one, all_builds, row_of
from tests.unit.controlplane.usecases.test_find_sandboxes import made
from wrenn_sandbox.controlplane.intents import intent
from wrenn_sandbox.controlplane.messages import lifetime_message
from wrenn_sandbox.controlplane.platform import now
from wrenn_sandbox.controlplane.reconciler import Reconciler
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.ids import BuildId, SandboxId, TemplateId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.reconcile import Timing
from wrenn_sandbox.db import builds, hosts, sandboxes
from wrenn_sandbox.db.builds import Kind, Status
from wrenn_sandbox.db.hosts import HostStatus
from wrenn_sandbox.db.sandboxes import Change, Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

AT_ONCE = Timing(0.0, 0.0, 0.0, 0.0)


def info(row: Sandbox, status: str = "running", **more: object) -> pb.SandboxInfo:
    lifetime = lifetime_message(row.lifetime)
    return pb.SandboxInfo(sandbox_id=str(row.id), status=status, **{"lifetime": lifetime, **more})  # type: ignore[arg-type]


def listing(w: World, *infos: pb.SandboxInfo) -> None:
    w.agent.answers["ListSandboxes"] = pb.ListSandboxesResponse(sandboxes=list(infos))


async def settled(w: World, row: Sandbox) -> Sandbox:
    await all_settled(w, row.id)
    return await get_sandbox(w.platform, w.team, row.id)


def test_a_dead_machine_shows_at_the_next_tick_also_to_the_next_request(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            listing(w, info(row, "error", reason="signal 9", reason_slug="vmm_died"))
            await Reconciler(w.platform).tick()
            found = await settled(w, row)
            assert (found.state, found.status_reason, found.status_slug) == (State.ERROR, "signal 9", "vmm_died")
            assert w.platform.rows.get(row.id) is None

    asyncio.run(main())


def test_a_row_that_changes_while_the_agent_is_asked_is_left_alone(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)

            async def list_(_request: object) -> pb.ListSandboxesResponse:
                async with w.platform.db.write() as connection:
                    await sandboxes.set_lifetime(connection, w.team, row.id, replace(row.lifetime, idle_timeout_s=1))
                return pb.ListSandboxesResponse()

            w.agent.answers["ListSandboxes"] = list_
            await Reconciler(w.platform, AT_ONCE).tick()
            assert (await settled(w, row)).state is State.RUNNING

    asyncio.run(main())


def test_a_sandbox_made_between_the_two_lists_is_not_destroyed(world) -> None:
    async def main() -> None:
        async with world() as w:

            async def list_(_request: object) -> pb.ListSandboxesResponse:
                row = await made(w)  # its row was not there when the rows were read
                return pb.ListSandboxesResponse(sandboxes=[info(row)])

            w.agent.answers["ListSandboxes"] = list_
            await Reconciler(w.platform, AT_ONCE).tick()
            row = w.agent.requests("CreateSandbox")[0]
            assert row.sandbox_id and w.agent.requests("DestroySandbox") == []

    asyncio.run(main())


def test_an_orphan_is_destroyed_and_an_abandoned_end_finished(world) -> None:
    async def main() -> None:
        async with world() as w:
            orphan, ending = await made(w), await made(w)
            async with w.platform.db.write() as connection:
                await sandboxes.move(connection, orphan.id, {State.RUNNING}, State.STOPPED)
                await sandboxes.move(connection, ending.id, {State.RUNNING}, State.STOPPING)
            listing(w, info(orphan), info(ending))
            await Reconciler(w.platform, AT_ONCE).tick()
            assert (await settled(w, orphan)).state is State.STOPPED
            assert (await settled(w, ending)).state is State.STOPPED
            assert {r.sandbox_id for r in w.agent.requests("DestroySandbox")} == {str(orphan.id), str(ending.id)}

    asyncio.run(main())


def test_the_work_of_a_lost_database_is_left_alone_and_said(world) -> None:
    async def main() -> None:
        async with world() as w:
            stopped = await made(w)
            async with w.platform.db.write() as connection:
                await sandboxes.move(connection, stopped.id, {State.RUNNING}, State.STOPPED)
            paused, failed, ran = (replace(stopped, id=SandboxId(uuid4())) for _ in range(3))
            listing(
                w,
                info(paused, "paused", build_id=BUILD),
                info(failed, "error", build_id=BUILD),
                info(ran),
                info(stopped, "paused", build_id=BUILD),
            )
            reconciler = Reconciler(w.platform, AT_ONCE)
            with capture_logs() as logged:
                for _ in range(3):
                    await reconciler.tick()
            await all_settled(w, *(row.id for row in (paused, failed, ran, stopped)))
            assert {r.sandbox_id for r in w.agent.requests("DestroySandbox")} == {str(ran.id), str(stopped.id)}
            (said,) = [line for line in logged if "does not know" in line["event"]]
            assert set(said["some"]) == {str(paused.id), str(failed.id)} and "WRENN_DATABASE_URL" in said["todo"]

    asyncio.run(main())


def test_lost_timeouts_are_sent_again(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            listing(w, info(row, lifetime=pb.Lifetime(idle_timeout_s=1)))
            await Reconciler(w.platform).tick()
            await settled(w, row)
            (sent,) = w.agent.requests("SetLifetime")
            assert sent.lifetime.idle_timeout_s == row.lifetime.idle_timeout_s

    asyncio.run(main())


def test_a_silent_host_makes_its_sandboxes_missing_and_its_return_brings_them_back(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["ListSandboxes"] = Unavailable("silent")
            reconciler = Reconciler(w.platform)
            await reconciler.tick()
            assert (await settled(w, row)).state is State.RUNNING
            w.platform.contact.last_answer_s = time.monotonic() - 91
            await reconciler.tick()
            assert (await settled(w, row)).state is State.MISSING
            async with w.platform.db.read() as connection:
                assert await hosts.status(connection, w.platform.host_id) is HostStatus.UNREACHABLE
            listing(w, info(row, host_ip="10.11.0.9"))
            await reconciler.tick()
            found = await settled(w, row)
            assert (found.state, found.host_ip, found.started_at) == (State.RUNNING, "10.11.0.9", row.started_at)

    asyncio.run(main())


def test_activity_is_written_but_not_every_second(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            soon, later = now() + timedelta(seconds=2), now() + timedelta(seconds=60)
            for moment, expected in ((soon, row.last_active_at), (later, later.replace(microsecond=0))):
                listing(w, info(row, last_active_at_unix=int(moment.timestamp())))
                await Reconciler(w.platform).tick()
                assert (await settled(w, row)).last_active_at == expected

    asyncio.run(main())


def test_it_goes_on_after_any_error_and_keeps_its_books(world, monkeypatch) -> None:
    async def main() -> None:
        async with world() as w:
            ticks: list[float] = []

            async def no_sleep(_seconds: float) -> None:
                ticks.append(0)
                w.agent.answers["ListSandboxes"] = [Unavailable("x"), RuntimeError("y"), pb.ListSandboxesResponse()][
                    min(len(ticks), 2)
                ]
                if len(ticks) == 4:
                    raise asyncio.CancelledError

            w.agent.answers["GetHost"] = pb.GetHostResponse(arch="x86_64", cpu_cores=2)
            monkeypatch.setattr("wrenn_sandbox.controlplane.reconciler.asyncio.sleep", no_sleep)
            with __import__("contextlib").suppress(asyncio.CancelledError):
                await Reconciler(w.platform).run()
            async with w.platform.db.read() as connection:
                assert await hosts.status(connection, w.platform.host_id) is HostStatus.ONLINE
            assert len(ticks) == 4

    asyncio.run(main())


BUILD = "33333333-3333-4333-8333-333333333333"


def test_a_pause_of_the_hosts_own_is_written_down_with_its_build(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            listing(w, info(row, "paused", build_id=BUILD, reason="not used", reason_slug="idle_timeout"))
            for _ in range(2):  # it may be seen again and again
                await Reconciler(w.platform, AT_ONCE).tick()
                found = await settled(w, row)
                assert (found.state, found.status_slug, found.host_ip) == (State.PAUSED, "idle_timeout", "")
                assert found.build_id is not None and found.build_id == found.current_build_id
                assert str(found.build_id.value) == BUILD
                (recorded,) = (await all_builds(w)).values()
                assert (recorded.id, recorded.kind, recorded.status) == (found.build_id, Kind.PAUSE, Status.READY)
            assert w.agent.requests("DestroySandbox") == []

    asyncio.run(main())


def test_a_paused_one_outlives_any_number_of_looks(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            reconciler = Reconciler(w.platform, AT_ONCE)
            for infos in ([], [info(row, "paused", build_id=BUILD)], [info(row)], [info(row, "error")]) * 2:
                listing(w, *infos)
                await reconciler.tick()
                assert await settled(w, row) == row
            assert w.agent.requests("DestroySandbox") == []

    asyncio.run(main())


def test_a_lost_machine_is_an_error_that_keeps_and_offers_its_last_build(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            assert row.build_id is not None
            async with w.platform.db.write() as connection:
                await sandboxes.move(connection, row.id, {State.PAUSED}, State.RUNNING)
            # After a crash of the host, the agent knows nothing but what is on its disk.
            listing(w, info(row, "paused", build_id=str(row.build_id.value)))
            reconciler = Reconciler(w.platform, AT_ONCE)
            for _ in range(3):
                await reconciler.tick()
                found = await settled(w, row)
                assert (found.state, found.status_slug) == (State.ERROR, "sandbox_lost")
                assert "resume it" in found.status_reason and found.build_id == row.build_id
            assert w.agent.requests("DestroySandbox") == [], "what it can be resumed from would go with it"

    asyncio.run(main())


@pytest.mark.parametrize("before", [State.PAUSING, State.RESUMING])
@pytest.mark.parametrize(
    ("status", "state"), [("running", State.RUNNING), ("paused", State.PAUSED), ("error", State.ERROR)]
)
def test_a_change_that_a_killed_control_plane_left_is_settled(world, before: State, status: str, state: State) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            assert row.build_id is not None
            async with w.platform.db.write() as connection:
                first = {State.PAUSED} if before is State.RESUMING else {State.RUNNING}
                if before is State.PAUSING:
                    await sandboxes.move(connection, row.id, {State.PAUSED}, State.RUNNING)
                await sandboxes.move(connection, row.id, first, before, Change())
            build = str(row.build_id.value) if before is State.RESUMING else BUILD
            listing(w, info(row, status, build_id=build, host_ip="10.11.0.9", vcpus=1, memory_mb=512))
            await Reconciler(w.platform).tick()
            assert (await settled(w, row)).state is before, "not at once"
            await Reconciler(w.platform, AT_ONCE).tick()
            found = await settled(w, row)
            assert found.state is state
            assert found.build_id is not None and str(found.build_id.value) == build
            if state is State.RUNNING:
                assert found.host_ip == "10.11.0.9"
                assert (found.started_at != row.started_at) is (before is State.RESUMING)

    asyncio.run(main())


def test_a_resume_that_never_reached_the_host_is_paused_again(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            async with w.platform.db.write() as connection:
                await sandboxes.move(connection, row.id, {State.PAUSED}, State.RESUMING)
            listing(w)
            await Reconciler(w.platform, AT_ONCE).tick()
            found = await settled(w, row)
            assert (found.state, found.build_id) == (State.PAUSED, row.build_id)

    asyncio.run(main())


def test_a_build_that_a_killed_control_plane_did_not_see_is_noted(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            listing(w, info(row, build_id=BUILD))
            await Reconciler(w.platform, AT_ONCE).tick()
            found = await row_of(w, row.id)
            assert found.build_id is not None and str(found.build_id.value) == BUILD
            assert found.current_build_id == found.build_id and found.state is State.RUNNING

    asyncio.run(main())


def test_an_error_that_gets_a_build_while_it_is_to_be_destroyed_is_spared(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            async with w.platform.db.write() as connection:
                await sandboxes.move(connection, row.id, {State.RUNNING}, State.ERROR)

            async def list_(_request: object) -> pb.ListSandboxesResponse:
                async with w.platform.db.write() as connection:
                    await sandboxes.move(connection, row.id, {State.ERROR}, State.RESUMING)
                return pb.ListSandboxesResponse(sandboxes=[info(row, "error")])

            w.agent.answers["ListSandboxes"] = list_
            await Reconciler(w.platform, AT_ONCE).tick()
            assert (await settled(w, row)).state is State.RESUMING and w.agent.requests("DestroySandbox") == []

    asyncio.run(main())


def test_a_snapshot_that_left_it_paused_still_becomes_a_template(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            named = intent(row, Kind.SNAPSHOT, name="n", template=TemplateId(UUID(BUILD)))
            async with w.platform.db.write() as connection:
                await sandboxes.move(connection, row.id, {State.RUNNING}, State.PAUSING)
                await builds.begin(connection, named)
            listing(w, info(row, "paused", build_id=str(named.id.value)))
            await Reconciler(w.platform, AT_ONCE).tick()
            assert (await settled(w, row)).state is State.PAUSED
            assert await all_builds(w) == {named.id.value: named}, "the intent is the list of builds' to settle"

    asyncio.run(main())


@pytest.mark.parametrize("done", [True, False], ids=["it was done", "it was not done"])
def test_a_roll_back_that_a_killed_control_plane_left_is_settled(world, done: bool) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            target = BuildId(UUID(BUILD))
            async with w.platform.db.write() as connection:
                assert await sandboxes.begin_rollback(connection, row.id, target)
            before = await row_of(w, row.id)
            assert before.intended_build_id == target
            host_ip = "10.11.0.9" if done else row.host_ip
            has = BUILD if done else ""
            listing(w, info(row, host_ip=host_ip, build_id=has, current_build_id=has))
            await Reconciler(w.platform).tick()
            assert await settled(w, row) == before, "not at once"
            w.platform.rows.put(row.id, before, w.platform.rows.ticket())
            await Reconciler(w.platform, AT_ONCE).tick()
            found = await settled(w, row)
            new = {"build_id": target, "current_build_id": target} if done else {}
            assert found == replace(before, intended_build_id=None, host_ip=host_ip, **new)
            assert w.platform.rows.get(row.id) is None, "its address goes to the proxy"

    asyncio.run(main())


@pytest.mark.parametrize("born", [3, 2, 0])
def test_a_fork_that_a_killed_control_plane_left_has_all_its_children_or_none(world, born: int) -> None:
    async def main() -> None:
        async with world() as w:
            source, fork = await made(w), BuildId(uuid4())
            children = [
                replace(source, id=SandboxId(uuid4()), state=State.PENDING, intended_build_id=fork) for _ in range(3)
            ]
            async with w.platform.db.write() as connection:
                for child in children:
                    await sandboxes.add(connection, child)
            there = [info(child, host_ip="10.11.0.9", current_build_id=str(fork.value)) for child in children[:born]]
            listing(w, info(source), *there)
            await Reconciler(w.platform, AT_ONCE).tick()
            for child in children:
                found = await settled(w, child)
                if born == 3:
                    assert (found.state, found.host_ip) == (State.RUNNING, "10.11.0.9")
                    assert (found.current_build_id, found.intended_build_id) == (fork, None)
                else:
                    assert (found.state, found.status_slug) == (State.ERROR, "fork_interrupted")
                    assert found.build_id is None
            ended = {r.sandbox_id for r in w.agent.requests("DestroySandbox")}
            assert ended == (set() if born == 3 else {entry.sandbox_id for entry in there})
            assert (await settled(w, source)).state is State.RUNNING

    asyncio.run(main())


def test_what_a_guest_waits_for_is_known_while_it_lasts(world) -> None:
    async def main() -> None:
        async with world() as w:
            row, other = await made(w), await made(w)
            waits = info(row, stalled="host_disk_full")
            for answer, known in (
                (pb.ListSandboxesResponse(sandboxes=[waits, info(other)]), {row.id: "host_disk_full"}),
                (pb.ListSandboxesResponse(sandboxes=[info(row), info(other)]), {}),
                (pb.ListSandboxesResponse(sandboxes=[waits]), {row.id: "host_disk_full"}),
                (Unavailable("silent"), {}),
            ):
                w.agent.answers["ListSandboxes"] = answer
                await Reconciler(w.platform).tick()
                assert w.platform.stalled == known

    asyncio.run(main())
