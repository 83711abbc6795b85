"""A fork failed and cancelled: all children are there, or none is."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from tests.unit.controlplane.conftest import World
from tests.unit.controlplane.moments import (
    a_paused_one,
    all_builds,
    build,
    forked,
    left_by_its_caller,
    obedient,
    row_of,
)
from tests.unit.controlplane.usecases.test_find_sandboxes import STRANGER, made, move
from wrenn_sandbox.controlplane.usecases.create_sandbox import Wish, create_sandbox
from wrenn_sandbox.controlplane.usecases.destroy_sandbox import destroy_sandbox
from wrenn_sandbox.controlplane.usecases.fork_sandbox import ForkWish, fork_sandbox
from wrenn_sandbox.controlplane.usecases.set_lifetime import LifetimeChange
from wrenn_sandbox.core.errors import Bug, Conflict, Exhausted, NotFound, Unavailable
from wrenn_sandbox.core.ids import BuildId, SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Lifetime
from wrenn_sandbox.db import sandboxes
from wrenn_sandbox.db.builds import Kind, Status
from wrenn_sandbox.db.sandboxes import Page, Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


async def others(w: World, source: Sandbox) -> list[Sandbox]:
    """All rows but the source's."""
    async with w.platform.db.read() as connection:
        rows = await sandboxes.page(connection, w.team, Page(200, states=frozenset(State)))
    return [row for row in rows if row.id != source.id]


def test_children_are_like_their_source_but_for_their_identity(world) -> None:
    async def main() -> None:
        async with world() as w:
            await made(w)
            wish = Wish(metadata={"a": "b"}, envs={"X": "1"}, lifetime=Lifetime(60))
            source = (await create_sandbox(w.platform, w.team, wish)).sandbox
            obedient(w)
            children = await fork_sandbox(w.platform, w.team, source.id, ForkWish(3))
            assert len({child.id for child in children} | {source.id}) == 4
            assert len({child.access_token for child in children} | {source.access_token}) == 4, (
                "weak: one token for all"
            )
            for child in children:
                assert (child.metadata, child.envs, child.lifetime) == ({"a": "b"}, {"X": "1"}, Lifetime(60))
                assert (child.template_id, child.shape, child.team_id) == (source.template_id, source.shape, w.team)
                assert child.state is State.RUNNING and child.started_at is not None and child.build_id is None
            assert [child.host_ip for child in children] == ["10.11.1.0", "10.11.1.1", "10.11.1.2"]
            (recorded,) = (await all_builds(w)).values()
            assert (recorded.kind, recorded.status, recorded.sandbox_id) == (Kind.FORK, Status.READY, source.id)
            assert {child.current_build_id for child in children} == {recorded.id}
            after = await row_of(w, source.id)
            assert (after.state, after.current_build_id) == (State.RUNNING, recorded.id)
            (request,) = w.agent.requests("ForkSandbox")
            assert {c.access_token for c in request.children} == {child.access_token for child in children}

    asyncio.run(main())


def test_rows_are_there_before_the_host_is_asked_and_busy_meanwhile(world) -> None:
    async def main() -> None:
        async with world() as w:
            source = await made(w)

            async def fork(request: pb.ForkSandboxRequest) -> pb.ForkSandboxResponse:
                rows = await others(w, source)
                assert {row.state for row in rows} == {State.PENDING} and len(rows) == 2
                assert {row.intended_build_id for row in rows} == {BuildId(UUID(request.build_id))}
                assert all(w.platform.settling.is_busy(row.id) for row in (*rows, source))
                return forked(request)

            w.agent.answers["ForkSandbox"] = fork
            children = await fork_sandbox(w.platform, w.team, source.id, ForkWish(2, LifetimeChange(7)))
            assert {(c.lifetime.idle_timeout_s, c.intended_build_id) for c in children} == {(7, None)}
            assert not any(w.platform.settling.is_busy(child.id) for child in children)

    asyncio.run(main())


def test_a_paused_source_stays_paused_and_gives_the_build_it_has(world) -> None:
    async def main() -> None:
        async with world() as w:
            source = await a_paused_one(w)
            assert source.build_id is not None

            def fork(request: pb.ForkSandboxRequest) -> pb.ForkSandboxResponse:
                answer = forked(request)
                answer.build = build(str(source.build_id.value), str(source.id))  # type: ignore[union-attr]
                return answer

            w.agent.answers["ForkSandbox"] = fork
            (child,) = await fork_sandbox(w.platform, w.team, source.id, ForkWish(1))
            assert child.current_build_id == source.build_id and child.host_ip
            assert await row_of(w, source.id) == source
            assert [found.kind for found in (await all_builds(w)).values()] == [Kind.PAUSE]

    asyncio.run(main())


def test_what_cannot_be_forked_says_why(world) -> None:
    async def main() -> None:
        async with world() as w:
            source = await made(w)
            for team, sandbox in ((STRANGER, source.id), (w.team, SandboxId(STRANGER.value))):
                with pytest.raises(NotFound):
                    await fork_sandbox(w.platform, team, sandbox, ForkWish(1))
            await move(w, source, State.ERROR)
            with pytest.raises(Conflict):
                await fork_sandbox(w.platform, w.team, source.id, ForkWish(1))
            assert await others(w, source) == []

    asyncio.run(main())


def only_one(request: pb.ForkSandboxRequest) -> pb.ForkSandboxResponse:
    answer = forked(request)
    return pb.ForkSandboxResponse(build=answer.build, children=list(answer.children)[:1])


@pytest.mark.parametrize(
    ("answer", "slug", "settled"),
    [
        (Exhausted("full"), "host_full", True),
        (Unavailable("silent"), "host_unavailable", False),
        (RuntimeError("unexpected"), "internal_error", False),
        (only_one, "internal_error", True),
        (pb.ForkSandboxResponse(), "internal_error", True),
    ],
    ids=["full", "silent", "unexpected", "one missing", "no build"],
)
def test_a_failed_fork_has_no_children_and_leaves_its_source_alone(world, answer, slug: str, settled: bool) -> None:
    async def main() -> None:
        async with world() as w:
            source = await made(w)
            w.agent.answers["ForkSandbox"] = answer
            with pytest.raises(type(answer) if isinstance(answer, Exception) else Bug):
                await fork_sandbox(w.platform, w.team, source.id, ForkWish(3))
            rows = await others(w, source)
            assert [(row.state, row.status_slug) for row in rows] == [(State.ERROR, slug)] * 3
            assert all(row.build_id is None for row in rows), "nothing that comes up late may stay"
            assert await row_of(w, source.id) == source
            assert (await all_builds(w) == {}) is settled

    asyncio.run(main())


@pytest.mark.parametrize("fails", [None, Exhausted("x")])
def test_a_caller_who_leaves_does_not_stop_it(world, fails: Exception | None) -> None:
    async def main() -> None:
        async with world() as w:
            source = await made(w)
            obedient(w)
            await left_by_its_caller(
                w,
                "ForkSandbox",
                lambda: fork_sandbox(w.platform, w.team, source.id, ForkWish(2)),
                source.id,
                fails=fails,
            )
            states = {row.state for row in await others(w, source)}
            assert states == {State.ERROR if fails else State.RUNNING}

    asyncio.run(main())


def test_a_child_destroyed_before_it_is_born_is_destroyed(world) -> None:
    async def main() -> None:
        async with world() as w:
            source = await made(w)
            doomed: list[str] = []

            async def fork(request: pb.ForkSandboxRequest) -> pb.ForkSandboxResponse:
                doomed.append(request.children[0].sandbox_id)
                await destroy_sandbox(w.platform, w.team, SandboxId.parse(doomed[0]))
                return forked(request)

            w.agent.answers["ForkSandbox"] = fork
            children = await fork_sandbox(w.platform, w.team, source.id, ForkWish(2))
            assert [child.state for child in children] == [State.STOPPED, State.RUNNING]
            assert [r.sandbox_id for r in w.agent.requests("DestroySandbox")] == doomed * 2

    asyncio.run(main())


def test_a_child_that_another_control_plane_found_first_is_not_destroyed(world) -> None:
    async def main() -> None:
        async with world() as w:
            source = await made(w)

            async def fork(request: pb.ForkSandboxRequest) -> pb.ForkSandboxResponse:
                async with w.platform.db.write() as connection:
                    child = SandboxId.parse(request.children[0].sandbox_id)
                    await sandboxes.move(connection, child, {State.PENDING}, State.RUNNING)
                return forked(request)

            w.agent.answers["ForkSandbox"] = fork
            children = await fork_sandbox(w.platform, w.team, source.id, ForkWish(2))
            assert [child.state for child in children] == [State.RUNNING] * 2
            assert w.agent.requests("DestroySandbox") == []

    asyncio.run(main())
