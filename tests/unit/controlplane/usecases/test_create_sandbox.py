"""Every step failed and cancelled in turn: whatever happens, the row tells the truth and nothing is left behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.contract.test_builds import new_template
from tests.unit.controlplane.conftest import World, all_settled, running
from wrenn_sandbox.controlplane.usecases.create_sandbox import Wish, create_sandbox
from wrenn_sandbox.controlplane.usecases.destroy_sandbox import destroy_sandbox
from wrenn_sandbox.core.errors import Bug, Conflict, Exhausted, Invalid, NotFound, Unavailable, WrennError
from wrenn_sandbox.core.ids import HostId, SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.db import sandboxes, templates
from wrenn_sandbox.db.sandboxes import Change, Page, Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


async def rows(world: World) -> list[Sandbox]:
    async with world.platform.db.read() as connection:
        return await sandboxes.page(connection, world.team, Page(100, states=frozenset(State)))


def test_the_row_is_there_before_the_agent_is_asked_and_tells_the_outcome(world) -> None:
    async def main() -> None:
        async with world() as w:
            before: list[State] = []

            async def make(request: pb.CreateSandboxRequest) -> pb.CreateSandboxResponse:
                before.extend(row.state for row in await rows(w))
                answer = running(request)
                answer.vcpus, answer.memory_mb = 4, 1024
                return answer

            w.agent.answers["CreateSandbox"] = make
            created = await create_sandbox(w.platform, w.team, Wish(vcpus=3, memory_mb=600, envs={"A": "1"}))
            assert before == [State.PENDING]
            (row,) = await rows(w)
            assert row == created.sandbox and row.state is State.RUNNING and row.started_at is not None
            assert (row.host_ip, row.shape) == ("10.11.0.1", Shape(4, 1024))
            assert [phase.name for phase in created.phases] == ["restore"]
            (request,) = w.agent.requests("CreateSandbox")
            assert (request.vcpus, request.memory_mb) == (4, 1024) and dict(request.default_env) == {"A": "1"}
            assert request.access_token == row.access_token and len(row.access_token) == 64
            assert not w.platform.settling.is_busy(row.id)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        (Wish(vcpus=0), Invalid),
        (Wish(memory_mb=10**9), Invalid),
        (Wish(template="none"), NotFound),
    ],
)
def test_what_cannot_be_leaves_no_row(world, wish: Wish, error: type[WrennError]) -> None:
    async def main() -> None:
        async with world() as w:
            with pytest.raises(error):
                await create_sandbox(w.platform, w.team, wish)
            assert await rows(w) == [] and w.agent.calls == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "slug"),
    [
        (Exhausted("full"), "host_full"),
        (Unavailable("silent"), "host_unavailable"),
        (Bug("strange"), "internal_error"),
        (RuntimeError("unexpected"), "internal_error"),
        (pb.CreateSandboxResponse(vcpus=1, memory_mb=1), "internal_error"),
    ],
)
@pytest.mark.parametrize("clean_up_fails", [False, True])
def test_a_failed_create_is_an_error_with_its_reason_and_is_cleaned_up(world, answer, slug, clean_up_fails) -> None:
    async def main() -> None:
        async with world() as w:
            w.agent.answers["CreateSandbox"] = answer
            if clean_up_fails:
                w.agent.answers["DestroySandbox"] = Unavailable("silent")
            with pytest.raises(type(answer) if isinstance(answer, Exception) else Bug):
                await create_sandbox(w.platform, w.team, Wish())
            (row,) = await rows(w)
            assert (row.state, row.status_slug) == (State.ERROR, slug) and row.status_reason
            assert [r.sandbox_id for r in w.agent.requests("DestroySandbox")] == [str(row.id)]

    asyncio.run(main())


@pytest.mark.parametrize("outcome", ["made", "failed"])
def test_a_caller_who_leaves_leaves_nothing_half_made(world, outcome: str) -> None:
    async def main() -> None:
        async with world() as w:
            asked, go = asyncio.Event(), asyncio.Event()

            async def make(request: pb.CreateSandboxRequest) -> pb.CreateSandboxResponse:
                asked.set()
                await go.wait()
                if outcome == "failed":
                    raise Exhausted("full")
                return running(request)

            w.agent.answers["CreateSandbox"] = make
            async with asyncio.TaskGroup() as group:
                caller = group.create_task(create_sandbox(w.platform, w.team, Wish()))
                await asked.wait()
                caller.cancel()
            (row,) = await rows(w)
            assert row.state is State.PENDING and w.platform.settling.is_busy(row.id)
            go.set()
            await all_settled(w, row.id)
            (row,) = await rows(w)
            assert row.state is (State.RUNNING if outcome == "made" else State.ERROR)

    asyncio.run(main())


def test_one_destroyed_while_it_is_made_is_destroyed(world) -> None:
    async def main() -> None:
        async with world() as w:

            async def make(request: pb.CreateSandboxRequest) -> pb.CreateSandboxResponse:
                await destroy_sandbox(w.platform, w.team, SandboxId.parse(request.sandbox_id))
                return running(request)

            w.agent.answers["CreateSandbox"] = make
            with pytest.raises(Conflict) as caught:
                await create_sandbox(w.platform, w.team, Wish())
            assert caught.value.slug == "sandbox_destroyed"
            (row,) = await rows(w)
            assert row.state is State.STOPPED
            assert len(w.agent.requests("DestroySandbox")) == 2  # once by its user, once when it came to be after all

    asyncio.run(main())


@pytest.mark.parametrize("template", ["base", "n"])
def test_another_disk_than_the_templates_is_refused_before_anything_is_made(world, template: str) -> None:
    async def main() -> None:
        async with world() as w:
            async with w.platform.db.write() as connection:
                await templates.add(connection, new_template(w.team, host_id=w.platform.host_id))
            for size_mb in (1, 10, 99, 1 << 20):
                with pytest.raises(Invalid) as caught:
                    await create_sandbox(w.platform, w.team, Wish(template, disk_size_mb=size_mb))
                assert caught.value.slug == "disk_size_unsupported"
            assert await rows(w) == [] and w.agent.calls == []
            w.agent.answers["CreateSandbox"] = running
            made = await create_sandbox(w.platform, w.team, Wish(template))
            assert made.sandbox.disk_size_mb == (11 if template == "n" else 0)

    asyncio.run(main())


@pytest.mark.parametrize("found", [State.RUNNING, State.PAUSED, State.ERROR])
@pytest.mark.parametrize("answered", [True, False])
def test_what_another_control_plane_found_first_is_not_destroyed(world, found: State, answered: bool) -> None:
    async def main() -> None:
        async with world() as w:

            async def make(request: pb.CreateSandboxRequest) -> pb.CreateSandboxResponse:
                async with w.platform.db.write() as connection:
                    sandbox = SandboxId.parse(request.sandbox_id)
                    await sandboxes.move(connection, sandbox, {State.PENDING}, found, Change("broke", "vmm_died"))
                if not answered:
                    raise Unavailable("silent")
                return running(request)

            w.agent.answers["CreateSandbox"] = make
            if answered and found is not State.ERROR:
                assert (await create_sandbox(w.platform, w.team, Wish())).sandbox.state is found
            else:
                with pytest.raises(Conflict if answered else Unavailable):
                    await create_sandbox(w.platform, w.team, Wish())
            (row,) = await rows(w)
            assert row.state is found and w.agent.requests("DestroySandbox") == []

    asyncio.run(main())


def test_a_database_that_fails_after_the_agent_leaves_the_row_to_the_reconciler(world, monkeypatch) -> None:
    async def main() -> None:
        async with world() as w:
            w.agent.answers["CreateSandbox"] = running

            async def fail(*_: object, **__: object) -> bool:
                raise Unavailable("no database", slug="database_unavailable")

            monkeypatch.setattr(sandboxes, "move", fail)
            with pytest.raises(Unavailable):
                await create_sandbox(w.platform, w.team, Wish())
            (row,) = await rows(w)
            assert row.state is State.PENDING and w.agent.requests("DestroySandbox") == []

    asyncio.run(main())


def test_the_alias_reaches_the_agent_under_its_own_name(world) -> None:
    async def main() -> None:
        async with world() as w:
            w.agent.answers["CreateSandbox"] = running
            created = await create_sandbox(w.platform, w.team, replace(Wish(), template="minimal"))
            assert created.sandbox.template == "minimal"
            assert w.agent.requests("CreateSandbox")[0].template == "base"

    asyncio.run(main())


@pytest.mark.parametrize(("vcpus", "memory_mb"), [(1, 512), (8, 8192), (0, -1), (10_000, 10**9)])
def test_a_snapshot_fixes_what_the_machine_has(world, vcpus: int, memory_mb: int) -> None:
    async def main() -> None:
        async with world() as w:
            w.agent.answers["CreateSandbox"] = running
            template = new_template(w.team, host_id=w.platform.host_id)
            async with w.platform.db.write() as connection:
                await templates.add(connection, template)
            wish = Wish("n", vcpus, memory_mb, disk_size_mb=11, envs={"B": "2"})
            row = (await create_sandbox(w.platform, w.team, wish)).sandbox
            assert (row.shape, row.disk_size_mb, row.default_user) == (Shape(4, 2048), 11, "ada")
            assert row.envs == {"A": "ü", "B": "2"}
            assert (row.template_id, row.current_build_id, row.build_id) == (template.id, template.build_id, None)
            (request,) = w.agent.requests("CreateSandbox")
            assert (request.vcpus, request.memory_mb, request.default_user) == (4, 2048, "ada")
            assert template.build_id is not None and request.build_id == str(template.build_id.value)
            assert (request.template, request.template_id) == ("n", str(template.id.value))

    asyncio.run(main())


def test_a_template_on_another_host_is_not_made_where_it_is_not(world) -> None:
    async def main() -> None:
        async with world() as w:
            async with w.platform.db.write() as connection:
                await templates.add(connection, new_template(w.team, host_id=HostId(w.team.value)))
            with pytest.raises(Unavailable):
                await create_sandbox(w.platform, w.team, Wish("n"))
            assert await rows(w) == [] and w.agent.calls == []

    asyncio.run(main())
