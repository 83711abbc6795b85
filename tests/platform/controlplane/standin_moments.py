"""The stand-in agent's builds: what it does for pause, resume, snapshots, fork and rollback.

Nothing is on a disk; a build is a record, kept as long as a hold, a machine or another build needs it. A call whose
caller has gone is finished all the same, as the real agent does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from wrenn_sandbox.core.errors import Conflict, NotFound, WrennError
from wrenn_sandbox.rpc.errors import to_connect
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

if TYPE_CHECKING:
    from tests.platform.controlplane.standin import Machine

T = TypeVar("T")
#: Bytes of every build, so that there is something to see.
SIZE = 4096


class Moments:
    """Mixed into the stand-in agent."""

    machines: dict[str, Machine]
    builds: dict[str, pb.Build]
    holds: dict[str, str]
    calls: list[str]
    fail: dict[str, WrennError]
    delay_s: dict[str, float]
    working: int

    async def pause_sandbox(self, request: pb.PauseSandboxRequest, _ctx: Any) -> pb.PauseSandboxResponse:
        def pause() -> pb.PauseSandboxResponse:
            machine = self._machine(request.sandbox_id)
            if machine.status == "paused" and machine.build_id == request.build_id:
                return pb.PauseSandboxResponse(build=self._shown(request.build_id))
            self._require(machine, "running")
            return pb.PauseSandboxResponse(build=self.paused(request.sandbox_id, request.build_id))

        return await self._finish("PauseSandbox", pause)

    async def resume_sandbox(self, request: pb.ResumeSandboxRequest, _ctx: Any) -> pb.ResumeSandboxResponse:
        def resume() -> pb.ResumeSandboxResponse:
            machine, sandbox = self._machine(request.sandbox_id), request.sandbox
            assert sandbox is not None
            self._build(sandbox.build_id)
            if machine.status != "running":
                self._require(machine, "paused", "error")
                machine.request, machine.lifetime, machine.current = sandbox, sandbox.lifetime, sandbox.build_id
                machine.status, machine.reason, machine.reason_slug = "running", "", ""
                machine.host_ip = "10.11.0.2"
            return pb.ResumeSandboxResponse(sandbox_id=request.sandbox_id, status="running", host_ip=machine.host_ip)

        return await self._finish("ResumeSandbox", resume)

    async def create_snapshot(self, request: pb.CreateSnapshotRequest, _ctx: Any) -> pb.CreateSnapshotResponse:
        def snapshot() -> pb.CreateSnapshotResponse:
            machine = self._machine(request.sandbox_id)
            self._require(machine, "running", "paused")
            build_id = request.build_id if machine.status == "running" else machine.build_id
            if machine.status == "running" and request.leave_paused:
                self.paused(request.sandbox_id, build_id)
            elif machine.status == "running":
                self._capture(request.sandbox_id, build_id)
            self.holds[f"tpl-{request.template_id}"] = build_id
            build = self._shown(build_id)
            return pb.CreateSnapshotResponse(name=request.name, size_bytes=build.size_bytes, build=build)

        return await self._finish("CreateSnapshot", snapshot)

    async def delete_snapshot(self, request: pb.DeleteSnapshotRequest, _ctx: Any) -> pb.DeleteSnapshotResponse:
        def delete() -> pb.DeleteSnapshotResponse:
            self.release(f"tpl-{request.template_id}")
            return pb.DeleteSnapshotResponse()

        return await self._finish("DeleteSnapshot", delete)

    async def fork_sandbox(self, request: pb.ForkSandboxRequest, _ctx: Any) -> pb.ForkSandboxResponse:
        def fork() -> pb.ForkSandboxResponse:
            source = self._machine(request.sandbox_id)
            self._require(source, "running", "paused")
            build_id = request.build_id if source.status == "running" else source.build_id
            if source.status == "running":
                self._capture(request.sandbox_id, build_id)
            children = []
            for child in request.children:
                born = type(source)(child, lifetime=child.lifetime, current=build_id, host_ip="10.11.0.3")
                self.machines[child.sandbox_id] = born
                made = pb.CreateSandboxResponse(sandbox_id=child.sandbox_id, status="running", host_ip=born.host_ip)
                children.append(made)
            return pb.ForkSandboxResponse(build=self._shown(build_id), children=children)

        return await self._finish("ForkSandbox", fork)

    async def rollback_sandbox(self, request: pb.RollbackSandboxRequest, _ctx: Any) -> pb.RollbackSandboxResponse:
        def roll_back() -> pb.RollbackSandboxResponse:
            machine = self._machine(request.sandbox_id)
            self._require(machine, "running")
            self._build(request.build_id)
            machine.current = machine.build_id = self.holds[request.sandbox_id] = request.build_id
            machine.host_ip = "10.11.0.4"
            return pb.RollbackSandboxResponse(host_ip=machine.host_ip)

        return await self._finish("RollbackSandbox", roll_back)

    async def list_builds(self, _request: pb.ListBuildsRequest, _ctx: Any) -> pb.ListBuildsResponse:
        def list_() -> pb.ListBuildsResponse:
            self._collect()
            return pb.ListBuildsResponse(builds=[self._shown(build_id) for build_id in self.builds])

        return await self._finish("ListBuilds", list_)

    def paused(self, sandbox_id: str, build_id: str) -> pb.Build:
        """Pause a machine by itself, as an idle timeout does."""
        machine = self.machines[sandbox_id]
        self._capture(sandbox_id, build_id)
        machine.status, machine.build_id = "paused", build_id
        self.holds[sandbox_id] = build_id
        return self._shown(build_id)

    def release(self, holder: str) -> None:
        """Let go of what a sandbox or a template kept."""
        self.holds.pop(holder, None)
        self._collect()

    async def _finish(self, name: str, work: Callable[[], T]) -> T:
        self.calls.append(name)
        self.working += 1
        try:
            await asyncio.sleep(self.delay_s.get(name, 0))
        except asyncio.CancelledError:
            if name not in self.fail:
                work()
            raise
        finally:
            self.working -= 1
        if name in self.fail:
            raise to_connect(self.fail[name])
        return work()

    def _machine(self, sandbox_id: str) -> Machine:
        if sandbox_id not in self.machines:
            raise to_connect(NotFound(f"There is no sandbox {sandbox_id}.", slug="sandbox_not_found"))
        return self.machines[sandbox_id]

    def _require(self, machine: Machine, *states: str) -> None:
        if machine.status not in states:
            raise to_connect(Conflict(f"The sandbox is {machine.status}."))

    def _build(self, build_id: str) -> pb.Build:
        if build_id not in self.builds:
            raise to_connect(NotFound(f"There is no build {build_id}.", slug="build_not_found"))
        return self.builds[build_id]

    def _capture(self, sandbox_id: str, build_id: str) -> None:
        machine = self.machines[sandbox_id]
        self.builds[build_id] = pb.Build(
            build_id=build_id,
            parent_id=machine.current or "00000000-0000-4000-8000-0000000000ba",  # the base template's own
            size_bytes=SIZE,
            created_at_unix=time.time(),
            vcpus=machine.request.vcpus,
            memory_mb=machine.request.memory_mb,
            sandbox_id=sandbox_id,
        )
        machine.current = build_id

    def _shown(self, build_id: str) -> pb.Build:
        build = self._build(build_id)
        holders = sorted(holder for holder, held in self.holds.items() if held == build_id)
        return pb.Build(**{name: getattr(build, name) for name in FACTS}, holders=holders)

    def _collect(self) -> None:
        needed = {*self.holds.values(), *(m.current for m in self.machines.values())}
        todo = list(needed)
        while todo:
            build = self.builds.get(todo.pop())
            if build is not None and build.parent_id not in needed:
                needed.add(build.parent_id)
                todo.append(build.parent_id)
        for build_id in self.builds.keys() - needed:
            del self.builds[build_id]


FACTS = ("build_id", "parent_id", "size_bytes", "created_at_unix", "vcpus", "memory_mb", "sandbox_id")
