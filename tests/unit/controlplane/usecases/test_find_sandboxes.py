from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from tests.unit.controlplane.conftest import World, running
from wrenn_sandbox.controlplane.usecases.create_sandbox import Wish, create_sandbox
from wrenn_sandbox.controlplane.usecases.find_sandboxes import find_anyones, find_usable, get_sandbox, list_sandboxes
from wrenn_sandbox.core.errors import Conflict, NotFound, Unavailable
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.db import sandboxes
from wrenn_sandbox.db.sandboxes import Page, Sandbox

STRANGER = TeamId(UUID(int=99))


async def made(w: World) -> Sandbox:
    w.agent.answers["CreateSandbox"] = running
    return (await create_sandbox(w.platform, w.team, Wish())).sandbox


async def move(w: World, row: Sandbox, state: State) -> None:
    async with w.platform.db.write() as connection:
        assert await sandboxes.move(connection, row.id, {State.RUNNING}, state)


def test_what_runs_can_be_used_by_its_team_alone(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            assert await find_usable(w.platform, w.team, row.id) == row
            for find in (find_usable, get_sandbox):
                with pytest.raises(NotFound):
                    await find(w.platform, STRANGER, row.id)
                with pytest.raises(NotFound):
                    await find(w.platform, w.team, SandboxId(UUID(int=1)))
            assert await list_sandboxes(w.platform, STRANGER, Page(10)) == []
            assert await list_sandboxes(w.platform, w.team, Page(10)) == [row]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("state", "error"), [(State.ERROR, Conflict), (State.STOPPED, Conflict), (State.MISSING, Unavailable)]
)
def test_what_does_not_run_says_why(world, state: State, error: type[Exception]) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            await move(w, row, state)
            w.platform.rows.drop(row.id)
            with pytest.raises(error):
                await find_usable(w.platform, w.team, row.id)

    asyncio.run(main())


def test_a_row_is_read_once_a_second_until_it_is_dropped(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            await move(w, row, State.ERROR)
            assert (await find_usable(w.platform, w.team, row.id)).state is State.RUNNING
            w.platform.rows.drop(row.id)
            found = await find_anyones(w.platform, row.id)
            assert found is not None and found.state is State.ERROR
            assert await find_anyones(w.platform, SandboxId(UUID(int=1))) is None

    asyncio.run(main())
