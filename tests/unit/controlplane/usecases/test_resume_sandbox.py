"""Each step of a resume failed and cancelled: it runs, or it is as it was before, or the reconciler finds out."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.controlplane.conftest import World
from tests.unit.controlplane.moments import a_paused_one, left_by_its_caller, resumed, row_of
from tests.unit.controlplane.usecases.test_find_sandboxes import STRANGER, made, move
from wrenn_sandbox.controlplane.usecases.destroy_sandbox import destroy_sandbox
from wrenn_sandbox.controlplane.usecases.resume_sandbox import resume_sandbox
from wrenn_sandbox.controlplane.usecases.set_lifetime import LifetimeChange
from wrenn_sandbox.core.errors import Conflict, Exhausted, NotFound, Unavailable
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Lifetime, TimeoutAction
from wrenn_sandbox.db import sandboxes
from wrenn_sandbox.db.sandboxes import Change, Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


async def a_failed_one(w: World) -> Sandbox:
    """A sandbox that was resumed once and whose machine died afterwards."""
    row = await a_paused_one(w)
    await resume_sandbox(w.platform, w.team, row.id)
    async with w.platform.db.write() as connection:
        await sandboxes.move(connection, row.id, {State.RUNNING}, State.ERROR, Change("signal 9", "vmm_died"))
    w.agent.calls.clear()
    return await row_of(w, row.id)


def test_everything_it_was_goes_back_to_the_host(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            seen: list[State] = []

            async def resume(request: pb.ResumeSandboxRequest) -> pb.ResumeSandboxResponse:
                seen.append((await row_of(w, row.id)).state)
                return resumed(request)

            w.agent.answers["ResumeSandbox"] = resume
            after = await resume_sandbox(w.platform, w.team, row.id)
            assert seen == [State.RESUMING]
            assert (after.state, after.host_ip, after.lifetime) == (State.RUNNING, "10.11.0.2", row.lifetime)
            assert after.started_at is not None and row.started_at is not None and after.started_at > row.started_at
            assert after.build_id == after.current_build_id == row.build_id
            (request,) = w.agent.requests("ResumeSandbox")
            sent = request.sandbox
            assert request.sandbox_id == sent.sandbox_id == str(row.id)
            assert row.build_id is not None and sent.build_id == str(row.build_id.value)
            assert sent.access_token == row.access_token and dict(sent.default_env) == row.envs
            assert sent.lifetime.idle_timeout_s == request.timeout_sec == row.lifetime.idle_timeout_s
            assert sent.network is not None and sent.template == "base"

    asyncio.run(main())


def test_new_timeouts_count_from_now_on(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            change = LifetimeChange(7, TimeoutAction.KILL, 4e9, TimeoutAction.PAUSE)
            after = await resume_sandbox(w.platform, w.team, row.id, change)
            assert after.lifetime == Lifetime(7, TimeoutAction.KILL, 4e9, TimeoutAction.PAUSE)
            assert w.agent.requests("ResumeSandbox")[0].sandbox.lifetime.ends_at_unix == 4e9

    asyncio.run(main())


def test_a_failed_one_goes_back_to_its_last_build_when_its_user_says_so(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_failed_one(w)
            assert row.stopped_at is not None
            after = await resume_sandbox(w.platform, w.team, row.id)
            assert (after.state, after.status_reason, after.stopped_at) == (State.RUNNING, "", None)
            (request,) = w.agent.requests("ResumeSandbox")
            assert row.build_id is not None and request.sandbox.build_id == str(row.build_id.value)

    asyncio.run(main())


def test_what_cannot_be_resumed_says_why(world) -> None:
    async def main() -> None:
        async with world() as w:
            running, failed = await made(w), await made(w)
            await move(w, failed, State.ERROR)
            for row in (running, failed):
                with pytest.raises(Conflict) as caught:
                    await resume_sandbox(w.platform, w.team, row.id)
                assert caught.value.slug == "invalid_state"
            paused = await a_paused_one(w)
            with pytest.raises(NotFound):
                await resume_sandbox(w.platform, STRANGER, paused.id)
            assert w.agent.requests("ResumeSandbox") == []

    asyncio.run(main())


@pytest.mark.parametrize("failure", [Exhausted("full"), NotFound("gone", slug="build_not_found")], ids=str)
@pytest.mark.parametrize("before", [State.PAUSED, State.ERROR])
def test_a_refused_resume_leaves_it_as_it_was(world, failure: Exception, before: State) -> None:
    async def main() -> None:
        async with world() as w:
            row = await (a_paused_one(w) if before is State.PAUSED else a_failed_one(w))
            w.agent.answers["ResumeSandbox"] = failure
            with pytest.raises(type(failure)):
                await resume_sandbox(w.platform, w.team, row.id, LifetimeChange(7))
            after = await row_of(w, row.id)
            assert (after.state, after.status_reason, after.status_slug) == (before, row.status_reason, row.status_slug)
            assert (after.lifetime, after.build_id) == (row.lifetime, row.build_id)
            assert w.agent.requests("DestroySandbox") == []

    asyncio.run(main())


@pytest.mark.parametrize("failure", [Unavailable("silent"), RuntimeError("unexpected")], ids=str)
def test_without_an_answer_the_row_says_resuming_until_the_host_says_more(world, failure: Exception) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            w.agent.answers["ResumeSandbox"] = failure
            with pytest.raises(type(failure)):
                await resume_sandbox(w.platform, w.team, row.id)
            assert (await row_of(w, row.id)).state is State.RESUMING

    asyncio.run(main())


@pytest.mark.parametrize("fails", [None, Exhausted("x")])
def test_a_caller_who_leaves_does_not_stop_it(world, fails: Exception | None) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)
            await left_by_its_caller(
                w, "ResumeSandbox", lambda: resume_sandbox(w.platform, w.team, row.id), row.id, fails=fails
            )
            assert (await row_of(w, row.id)).state is (State.PAUSED if fails else State.RUNNING)

    asyncio.run(main())


def test_one_destroyed_while_it_is_resumed_is_destroyed(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)

            async def resume(request: pb.ResumeSandboxRequest) -> pb.ResumeSandboxResponse:
                with pytest.raises(Conflict, match="resuming"):
                    await resume_sandbox(w.platform, w.team, row.id)
                await destroy_sandbox(w.platform, w.team, row.id)
                return resumed(request)

            w.agent.answers["ResumeSandbox"] = resume
            with pytest.raises(Conflict) as caught:
                await resume_sandbox(w.platform, w.team, row.id)
            assert caught.value.slug == "sandbox_destroyed"
            assert (await row_of(w, row.id)).state is State.STOPPED
            assert len(w.agent.requests("DestroySandbox")) == 2

    asyncio.run(main())


@pytest.mark.parametrize("found", [State.RUNNING, State.PAUSED, State.ERROR])
def test_what_another_control_plane_found_first_is_not_destroyed(world, found: State) -> None:
    async def main() -> None:
        async with world() as w:
            row = await a_paused_one(w)

            async def resume(request: pb.ResumeSandboxRequest) -> pb.ResumeSandboxResponse:
                async with w.platform.db.write() as connection:
                    await sandboxes.move(connection, row.id, {State.RESUMING}, found, Change("broke", "vmm_died"))
                return resumed(request)

            w.agent.answers["ResumeSandbox"] = resume
            if found is State.ERROR:
                with pytest.raises(Conflict) as caught:
                    await resume_sandbox(w.platform, w.team, row.id)
                assert caught.value.slug == "sandbox_ended" and "broke" in caught.value.message
            else:
                assert (await resume_sandbox(w.platform, w.team, row.id)).state is found
            assert (await row_of(w, row.id)).state is found
            assert w.agent.requests("DestroySandbox") == [], "its work would go with it"

    asyncio.run(main())
