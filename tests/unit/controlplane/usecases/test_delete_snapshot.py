from __future__ import annotations

import asyncio

import pytest

from tests.unit.controlplane.moments import obedient, row_of
from tests.unit.controlplane.usecases.test_find_sandboxes import STRANGER, made
from tests.unit.controlplane.usecases.test_take_snapshot import NAMED, own
from wrenn_sandbox.controlplane.usecases.create_sandbox import Wish, create_sandbox
from wrenn_sandbox.controlplane.usecases.delete_snapshot import delete_snapshot
from wrenn_sandbox.controlplane.usecases.take_snapshot import take_snapshot
from wrenn_sandbox.core.errors import Denied, NotFound, Unavailable
from wrenn_sandbox.core.lifecycle import State


@pytest.mark.parametrize("answer", [None, Unavailable("silent")])
def test_the_name_is_free_at_once_and_the_host_is_told(world, answer: Exception | None) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            template = await take_snapshot(w.platform, w.team, row.id, NAMED)
            if answer is not None:
                w.agent.answers["DeleteSnapshot"] = answer  # the reconciler tells it again
            await delete_snapshot(w.platform, w.team, "moment-1")
            assert await own(w) == []
            assert [r.template_id for r in w.agent.requests("DeleteSnapshot")] == [str(template.id.value)]
            with pytest.raises(NotFound) as caught:
                await create_sandbox(w.platform, w.team, Wish("moment-1"))
            assert caught.value.slug == "template_not_found"
            assert (await row_of(w, row.id)).state is State.RUNNING
            await take_snapshot(w.platform, w.team, row.id, NAMED)

    asyncio.run(main())


def test_what_a_team_cannot_delete(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            await take_snapshot(w.platform, w.team, row.id, NAMED)
            for name in ("base", "minimal"):
                with pytest.raises(Denied):
                    await delete_snapshot(w.platform, w.team, name)
            for team, name in ((w.team, "nothing"), (STRANGER, "moment-1")):
                with pytest.raises(NotFound) as caught:
                    await delete_snapshot(w.platform, team, name)
                assert caught.value.slug == "snapshot_not_found"
            assert len(await own(w)) == 1 and w.agent.requests("DeleteSnapshot") == []

    asyncio.run(main())
