"""Calls that make, end and look at sandboxes, and at the host."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import AsyncIterator
from typing import Any

from wrenn_sandbox import __version__
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import MEMORY_MIB_CHOICES, VCPU_CHOICES
from wrenn_sandbox.hostagent import wire
from wrenn_sandbox.hostagent.capacity import Capacity
from wrenn_sandbox.hostagent.draining import DRAIN_LIMIT_S, drained
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.templates import TEMPLATE_NAME, Templates
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb
from wrenn_sandbox.vmm.driver import Capabilities


class LifecycleCalls:
    """Create, destroy, list, ping, limits, and the host itself."""

    def __init__(
        self, registry: Registry, templates: Templates, capacity: Capacity, capabilities: Capabilities
    ) -> None:
        self._registry = registry
        self._templates = templates
        self._capacity = capacity
        self._capabilities = capabilities

    async def create_sandbox(self, request: pb.CreateSandboxRequest, _ctx: Any) -> pb.CreateSandboxResponse:
        """Answers when the sandbox runs; a caller that goes away before takes it along."""
        sandbox = await self._registry.create(wire.create_request(request, self._capabilities))
        return wire.created(sandbox, self._capabilities)

    async def destroy_sandbox(self, request: pb.DestroySandboxRequest, _ctx: Any) -> pb.DestroySandboxResponse:
        """Answers when nothing of it is left."""
        await self._registry.destroy(SandboxId.parse(request.sandbox_id))
        return pb.DestroySandboxResponse()

    async def list_sandboxes(self, _request: pb.ListSandboxesRequest, _ctx: Any) -> pb.ListSandboxesResponse:
        """All that live, and all that ended by themselves and whose end is not forgotten."""
        offset_s = time.time() - time.monotonic()
        return pb.ListSandboxesResponse(
            sandboxes=[wire.sandbox_info(sandbox, offset_s) for sandbox in self._registry.all()]
        )

    async def ping_sandbox(self, request: pb.PingSandboxRequest, _ctx: Any) -> pb.PingSandboxResponse:
        """Counts as a use."""
        self._registry.get(SandboxId.parse(request.sandbox_id)).touch()
        return pb.PingSandboxResponse()

    async def set_lifetime(self, request: pb.SetLifetimeRequest, _ctx: Any) -> pb.SetLifetimeResponse:
        """Replaces both limits."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        sandbox.set_lifetime(wire.lifetime(request.lifetime or pb.Lifetime()))
        return pb.SetLifetimeResponse()

    async def drain(self, request: pb.DrainRequest, _ctx: Any) -> AsyncIterator[pb.DrainResponse]:
        """Answers after every change, the last time when nothing more can be done."""
        kill = request.action is pb.TimeoutAction.KILL
        async for progress in drained(self._registry, kill=kill, limit_s=request.limit_s or DRAIN_LIMIT_S):
            yield pb.DrainResponse(total=progress.total, done=progress.done, failed=progress.failed)

    async def get_host(self, _request: pb.GetHostRequest, _ctx: Any) -> pb.GetHostResponse:
        """What this host is and has, now."""
        limits, room = self._capabilities, self._capacity.room()
        running = sum(1 for sandbox in self._registry.all() if sandbox.state is State.RUNNING)
        return pb.GetHostResponse(
            driver=wire.driver_name(limits),
            accelerated=limits.accelerated,
            arch=platform.machine(),
            cpu_cores=os.cpu_count() or 1,
            memory_mb=room.memory_total_mib,
            disk_mb=room.disk_total_mib,
            version=__version__,
            templates=[
                pb.BaseTemplate(
                    name=TEMPLATE_NAME,
                    vcpus=status.shape.vcpus,
                    memory_mb=status.shape.memory_mib,
                    status=status.status,
                    detail=status.detail,
                )
                for status in self._templates.statuses()
            ],
            running=running,
            memory_available_mb=room.memory_available_mib,
            disk_free_mb=room.disk_free_mib,
            vcpu_choices=[choice for choice in VCPU_CHOICES if choice <= limits.max_vcpus],
            memory_mb_choices=[choice for choice in MEMORY_MIB_CHOICES if choice <= limits.max_memory_mib],
        )
