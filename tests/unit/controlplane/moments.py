"""What an agent answers that does what it is asked about builds, and short ways to sandboxes in a state."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

from tests.unit.controlplane.conftest import World, all_settled
from tests.unit.controlplane.usecases.test_find_sandboxes import made
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.controlplane.usecases.pause_sandbox import pause_sandbox
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.db import builds
from wrenn_sandbox.db.builds import Build
from wrenn_sandbox.db.sandboxes import Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

#: Every build is a second younger than the one before.
_seconds = itertools.count(1_800_000_000)
#: The build of the base template, which has no row.
BASE = "00000000-0000-4000-8000-0000000000ba"


def build(build_id: str, sandbox: str = "", *, parent: str = BASE, holders: tuple[str, ...] = (), size: int = 7) -> Any:
    """A durable build as the agent speaks of it."""
    return pb.Build(
        build_id=build_id,
        parent_id=parent,
        size_bytes=size,
        created_at_unix=float(next(_seconds)),
        vcpus=1,
        memory_mb=512,
        sandbox_id=sandbox,
        holders=list(holders),
    )


def paused(request: pb.PauseSandboxRequest) -> pb.PauseSandboxResponse:
    """A pause that worked."""
    return pb.PauseSandboxResponse(build=build(request.build_id, request.sandbox_id, holders=(request.sandbox_id,)))


def resumed(request: pb.ResumeSandboxRequest) -> pb.ResumeSandboxResponse:
    """A resume that worked."""
    return pb.ResumeSandboxResponse(sandbox_id=request.sandbox_id, status="running", host_ip="10.11.0.2")


def kept(request: pb.CreateSnapshotRequest) -> pb.CreateSnapshotResponse:
    """A snapshot that worked."""
    holders = (f"tpl-{request.template_id}", request.sandbox_id)
    return pb.CreateSnapshotResponse(build=build(request.build_id, request.sandbox_id, holders=holders))


def forked(request: pb.ForkSandboxRequest) -> pb.ForkSandboxResponse:
    """A fork that worked."""
    return pb.ForkSandboxResponse(
        build=build(request.build_id, request.sandbox_id),
        children=[
            pb.CreateSandboxResponse(sandbox_id=child.sandbox_id, status="running", host_ip=f"10.11.1.{n}")
            for n, child in enumerate(request.children)
        ],
    )


def obedient(w: World) -> None:
    """Let the agent do all it is asked."""
    w.agent.answers |= {"PauseSandbox": paused, "ResumeSandbox": resumed, "CreateSnapshot": kept, "ForkSandbox": forked}
    w.agent.answers["RollbackSandbox"] = pb.RollbackSandboxResponse(host_ip="10.11.0.4")


async def a_paused_one(w: World) -> Sandbox:
    """A sandbox that was paused."""
    row = await made(w)
    obedient(w)
    return await pause_sandbox(w.platform, w.team, row.id)


async def row_of(w: World, sandbox: SandboxId) -> Sandbox:
    """The row as it is now."""
    return await get_sandbox(w.platform, w.team, sandbox)


async def all_builds(w: World) -> dict[UUID, Build]:
    """Every row of a build or an intent."""
    async with w.platform.db.read() as connection:
        return {found.id.value: found for found in await builds.of_host(connection, w.platform.host_id)}


async def left_by_its_caller(
    w: World,
    rpc: str,
    call: Callable[[], Coroutine[Any, Any, Any]],
    sandbox: SandboxId,
    *,
    fails: Exception | None = None,
) -> None:
    """Begin a call, cancel it while the agent is at work, let that end well or badly, and wait for all of it."""
    asked, go, answer = asyncio.Event(), asyncio.Event(), w.agent.answers[rpc]

    async def slowly(request: Any) -> Any:
        asked.set()
        await go.wait()
        if fails is not None:
            raise fails
        return answer(request) if callable(answer) else answer

    w.agent.answers[rpc] = slowly
    async with asyncio.TaskGroup() as group:
        caller = group.create_task(call())
        await asked.wait()
        caller.cancel()
    assert w.platform.settling.is_busy(sandbox)
    go.set()
    await all_settled(w, sandbox)
