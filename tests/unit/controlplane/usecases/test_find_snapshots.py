from __future__ import annotations

import asyncio

import pytest

from tests.unit.controlplane.moments import BASE, build, obedient, row_of
from tests.unit.controlplane.usecases.test_find_sandboxes import STRANGER, made
from tests.unit.controlplane.usecases.test_take_snapshot import NAMED
from wrenn_sandbox.controlplane.usecases.find_snapshots import Type, history, list_snapshots
from wrenn_sandbox.controlplane.usecases.fork_sandbox import ForkWish, fork_sandbox
from wrenn_sandbox.controlplane.usecases.pause_sandbox import pause_sandbox
from wrenn_sandbox.controlplane.usecases.resume_sandbox import resume_sandbox
from wrenn_sandbox.controlplane.usecases.take_snapshot import SnapshotWish, take_snapshot
from wrenn_sandbox.core.errors import NotFound
from wrenn_sandbox.db.builds import Kind
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


def test_templates_by_type_newest_first(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            for name in ("one", "two"):
                await take_snapshot(w.platform, w.team, row.id, SnapshotWish(name))
            assert [t.name for t in await list_snapshots(w.platform, w.team)][:2] == ["two", "one"]
            assert [t.name for t in await list_snapshots(w.platform, w.team, (Type.SNAPSHOT,))] == ["two", "one"]
            assert [t.name for t in await list_snapshots(w.platform, w.team, (Type.BASE,))] == ["base"]
            assert [t.name for t in await list_snapshots(w.platform, STRANGER)] == ["base"]

    asyncio.run(main())


def test_a_history_is_a_tree_that_goes_on_above_a_fork(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            obedient(w)
            latest = [BASE]

            def answering(answer: type) -> object:
                def answer_(request: object) -> object:
                    made_now = build(request.build_id, request.sandbox_id, parent=latest[-1])  # type: ignore[attr-defined]
                    made_now.created_at_unix += len(latest)
                    latest.append(request.build_id)  # type: ignore[attr-defined]
                    children = [
                        pb.CreateSandboxResponse(sandbox_id=child.sandbox_id)
                        for child in getattr(request, "children", ())
                    ]
                    return answer(build=made_now, **({"children": children} if children else {}))

                return answer_

            w.agent.answers["PauseSandbox"] = answering(pb.PauseSandboxResponse)
            w.agent.answers["CreateSnapshot"] = answering(pb.CreateSnapshotResponse)
            w.agent.answers["ForkSandbox"] = answering(pb.ForkSandboxResponse)
            assert await history(w.platform, w.team, row.id) == []
            await pause_sandbox(w.platform, w.team, row.id)
            await resume_sandbox(w.platform, w.team, row.id)
            await take_snapshot(w.platform, w.team, row.id, NAMED)
            (child,) = await fork_sandbox(w.platform, w.team, row.id, ForkWish(1))
            await pause_sandbox(w.platform, w.team, child.id)

            tree = await history(w.platform, w.team, row.id)
            assert [moment.kind for moment in tree] == [Kind.PAUSE, Kind.SNAPSHOT, Kind.FORK]
            assert [moment.parent for moment in tree] == [None, tree[0].id, tree[1].id]
            assert [moment.names for moment in tree] == [(), ("moment-1",), ()]
            assert [moment.current for moment in tree] == [False, False, True]
            assert tree[-1].id == (await row_of(w, row.id)).current_build_id

            below = await history(w.platform, w.team, child.id)
            assert [moment.id for moment in below[:-1]] == [moment.id for moment in tree]
            assert (below[-1].sandbox, below[-1].parent, below[-1].current) == (child.id, tree[-1].id, True)
            assert not any(moment.current for moment in below[:-1])
            with pytest.raises(NotFound):
                await history(w.platform, STRANGER, row.id)

    asyncio.run(main())
