from __future__ import annotations

import asyncio

import pytest

from tests.unit.controlplane.usecases.test_find_sandboxes import made, move
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.controlplane.usecases.set_lifetime import LifetimeChange, change_lifetime, ping_sandbox
from wrenn_sandbox.core.errors import Conflict, Unavailable
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Lifetime, TimeoutAction


def test_what_is_not_given_stays(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            changed = await change_lifetime(w.platform, w.team, row.id, LifetimeChange(0, ends_at_unix_s=2e9))
            assert changed.lifetime.idle_timeout_s == 0 and changed.lifetime.ends_at_unix_s == 2e9
            assert changed.lifetime.idle_action is row.lifetime.idle_action
            again = await change_lifetime(
                w.platform, w.team, row.id, LifetimeChange(idle_action=TimeoutAction.KILL, ends_at_unix_s=0.0)
            )
            assert again.lifetime.idle_timeout_s == 0 and again.lifetime.ends_at_unix_s == 0
            assert (await get_sandbox(w.platform, w.team, row.id)).lifetime == again.lifetime
            assert [r.lifetime.idle_timeout_s for r in w.agent.requests("SetLifetime")] == [0, 0]

    asyncio.run(main())


def test_a_silent_host_is_told_later(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["SetLifetime"] = Unavailable("silent")
            with pytest.raises(Unavailable):
                await change_lifetime(w.platform, w.team, row.id, LifetimeChange(5))
            assert (await get_sandbox(w.platform, w.team, row.id)).lifetime.idle_timeout_s == 5

    asyncio.run(main())


def test_what_does_not_run_has_no_timeouts_and_takes_no_ping(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            await ping_sandbox(w.platform, w.team, row.id)
            assert (await get_sandbox(w.platform, w.team, row.id)).last_active_at != row.last_active_at
            await move(w, row, State.STOPPED)
            w.platform.rows.drop(row.id)
            with pytest.raises(Conflict):
                await change_lifetime(w.platform, w.team, row.id, LifetimeChange(5))
            with pytest.raises(Conflict):
                await ping_sandbox(w.platform, w.team, row.id)
            assert w.agent.requests("SetLifetime") == []

    asyncio.run(main())


def test_a_deadline_that_passed_meanwhile_is_none_for_who_begins_anew() -> None:
    past, future = Lifetime(60, TimeoutAction.KILL, 1000.0, TimeoutAction.PAUSE), 4e9
    assert LifetimeChange().anew(past) == Lifetime(60, TimeoutAction.KILL, 0.0, TimeoutAction.PAUSE)
    assert LifetimeChange(ends_at_unix_s=future).anew(past).ends_at_unix_s == future
    assert LifetimeChange(0).anew(Lifetime(ends_at_unix_s=future)) == Lifetime(0, ends_at_unix_s=future)
