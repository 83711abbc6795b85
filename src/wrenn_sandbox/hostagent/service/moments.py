"""Calls on the moments of sandboxes: pause, resume, snapshots, forks, roll backs, and what there is of builds."""

from __future__ import annotations

from typing import Any

from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.hostagent import wire
from wrenn_sandbox.hostagent.builds import Kept
from wrenn_sandbox.hostagent.moments import Moments
from wrenn_sandbox.hostagent.threads import in_thread
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb
from wrenn_sandbox.vmm.driver import Capabilities


class MomentCalls:
    """Answers when it is done; whoever does not wait for that leaves it to go on."""

    def __init__(self, moments: Moments, capabilities: Capabilities) -> None:
        self._moments = moments
        self._limits = capabilities

    async def pause_sandbox(self, request: pb.PauseSandboxRequest, _ctx: Any) -> pb.PauseSandboxResponse:
        """Answers when the build is durable and everything else is freed."""
        kept = await self._moments.pause(SandboxId.parse(request.sandbox_id), wire.build_id(request.build_id))
        return pb.PauseSandboxResponse(build=await self._build(kept))

    async def resume_sandbox(self, request: pb.ResumeSandboxRequest, _ctx: Any) -> pb.ResumeSandboxResponse:
        """Answers when it runs."""
        sandbox = await self._moments.resume(wire.resume_request(request, self._limits))
        return pb.ResumeSandboxResponse(
            sandbox_id=str(sandbox.request.id),
            status=sandbox.state.value,
            host_ip=sandbox.host_ip,
            metadata=wire.metadata(self._limits),
            phases=wire.phases(sandbox),
        )

    async def create_snapshot(self, request: pb.CreateSnapshotRequest, _ctx: Any) -> pb.CreateSnapshotResponse:
        """Answers when the build is durable; the sandbox runs on, unless it shall be left paused."""
        kept = await self._moments.snapshot(
            SandboxId.parse(request.sandbox_id),
            wire.build_id(request.build_id),
            wire.template(request.template_id),
            leave_paused=request.leave_paused,
        )
        build = await self._build(kept)
        return pb.CreateSnapshotResponse(name=request.name, size_bytes=build.size_bytes, build=build)

    async def delete_snapshot(self, request: pb.DeleteSnapshotRequest, _ctx: Any) -> pb.DeleteSnapshotResponse:
        """The template lets its build go, which stays if somebody else needs it."""
        await self._moments.forget(wire.template(request.template_id))
        return pb.DeleteSnapshotResponse()

    async def fork_sandbox(self, request: pb.ForkSandboxRequest, _ctx: Any) -> pb.ForkSandboxResponse:
        """Answers when all children run."""
        children = wire.children(request, self._limits)
        kept, made = await self._moments.fork(
            SandboxId.parse(request.sandbox_id), wire.build_id(request.build_id), children
        )
        return pb.ForkSandboxResponse(
            build=await self._build(kept), children=[wire.created(sandbox, self._limits) for sandbox in made]
        )

    async def rollback_sandbox(self, request: pb.RollbackSandboxRequest, _ctx: Any) -> pb.RollbackSandboxResponse:
        """Answers when the sandbox runs from the build."""
        sandbox = await self._moments.rollback(SandboxId.parse(request.sandbox_id), wire.build_id(request.build_id))
        return pb.RollbackSandboxResponse(host_ip=sandbox.host_ip, phases=wire.phases(sandbox))

    async def list_builds(self, _request: pb.ListBuildsRequest, _ctx: Any) -> pb.ListBuildsResponse:
        """Every build, oldest first."""
        found, held = await self._moments.inventory()
        holders: dict[str, list[str]] = {}
        for holder, build_id in held.items():
            holders.setdefault(str(build_id), []).append(holder)
        builds = [await in_thread(wire.build, Kept(each), sorted(holders.get(str(each.id), []))) for each in found]
        return pb.ListBuildsResponse(builds=builds)

    async def _build(self, kept: Kept) -> pb.Build:
        return await in_thread(wire.build, kept, await self._moments.holders(kept.build.id))
