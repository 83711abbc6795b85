from __future__ import annotations

import asyncio

import pytest

from tests.unit.controlplane.conftest import World, all_settled, running
from wrenn_sandbox.controlplane.usecases.create_sandbox import Wish, create_sandbox
from wrenn_sandbox.controlplane.usecases.destroy_sandbox import destroy_sandbox
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import State


async def made(w: World) -> SandboxId:
    w.agent.answers["CreateSandbox"] = running
    return (await create_sandbox(w.platform, w.team, Wish())).sandbox.id


async def state_of(w: World, sandbox: SandboxId) -> State:
    return (await get_sandbox(w.platform, w.team, sandbox)).state


def test_the_row_says_stopping_before_the_agent_is_asked(world) -> None:
    async def main() -> None:
        async with world() as w:
            sandbox = await made(w)
            during: list[State] = []

            async def destroy(_request: object) -> None:
                during.append(await state_of(w, sandbox))

            w.agent.answers["DestroySandbox"] = destroy
            await destroy_sandbox(w.platform, w.team, sandbox)
            assert during == [State.STOPPING] and await state_of(w, sandbox) is State.STOPPED
            await destroy_sandbox(w.platform, w.team, sandbox)
            assert len(during) == 1  # again, it does nothing

    asyncio.run(main())


def test_a_silent_host_leaves_the_intent_for_the_reconciler_and_a_second_try_helps(world) -> None:
    async def main() -> None:
        async with world() as w:
            sandbox = await made(w)
            w.agent.answers["DestroySandbox"] = Unavailable("silent")
            with pytest.raises(Unavailable):
                await destroy_sandbox(w.platform, w.team, sandbox)
            assert await state_of(w, sandbox) is State.STOPPING
            del w.agent.answers["DestroySandbox"]
            await destroy_sandbox(w.platform, w.team, sandbox)
            assert await state_of(w, sandbox) is State.STOPPED

    asyncio.run(main())


def test_a_caller_who_leaves_does_not_stop_it(world) -> None:
    async def main() -> None:
        async with world() as w:
            sandbox = await made(w)
            asked, go = asyncio.Event(), asyncio.Event()

            async def destroy(_request: object) -> None:
                asked.set()
                await go.wait()

            w.agent.answers["DestroySandbox"] = destroy
            async with asyncio.TaskGroup() as group:
                caller = group.create_task(destroy_sandbox(w.platform, w.team, sandbox))
                await asked.wait()
                caller.cancel()
            go.set()
            await all_settled(w, sandbox)
            assert await state_of(w, sandbox) is State.STOPPED

    asyncio.run(main())


def test_one_of_another_team_is_not_found(world) -> None:
    async def main() -> None:
        async with world() as w:
            sandbox = await made(w)
            with pytest.raises(NotFound):
                await destroy_sandbox(w.platform, TeamId(sandbox.value), sandbox)
            assert await state_of(w, sandbox) is State.RUNNING

    asyncio.run(main())
