"""All sandboxes of this host, the living and those whose end somebody has yet to learn of.

A sandbox that ended by itself stays listed: in ``error`` until it is destroyed, ``stopped`` (idle timeout, deadline)
for ``REMEMBER_S``. One that never started, or was destroyed on request, leaves at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog

from wrenn_sandbox.core.errors import AlreadyExists, NotFound, Timeout, Unavailable
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.sandbox import Sandbox
from wrenn_sandbox.hostagent.steps.create import Request

log = structlog.get_logger()

REMEMBER_S = 600.0
#: A bound for what is remembered of the dead; beyond it the oldest goes.
MAX_REMEMBERED = 10_000
DESTROY_LIMIT_S = 60.0
OPEN_LIMIT_S = 30.0


class Registry:
    """Owner of the sandboxes; their tasks live in ``group``."""

    def __init__(self, host: Host, group: asyncio.TaskGroup) -> None:
        self._host = host
        self._group = group
        self._sandboxes: dict[SandboxId, Sandbox] = {}
        self._open, self._closing = asyncio.Event(), False

    def open(self) -> None:
        """Let creates in: nothing of a dead agent is in the way any more."""
        self._open.set()

    async def create(self, request: Request) -> Sandbox:
        """Make a sandbox and wait until it runs. A caller that goes away meanwhile takes it along."""
        try:
            async with asyncio.timeout(OPEN_LIMIT_S):
                await self._open.wait()
        except TimeoutError as error:
            message = "This host agent still clears up after another; try again."
            raise Unavailable(message, slug="agent_starting", retry_after_s=5) from error
        if self._closing:
            raise Unavailable("This host agent is stopping; try another host.", slug="agent_stopping")
        self._forget_old()
        if request.id in self._sandboxes:
            raise AlreadyExists(f"There is a sandbox {request.id} on this host already.", slug="sandbox_exists")
        sandbox = Sandbox(request, self._host)
        self._sandboxes[request.id] = sandbox
        self._group.create_task(self._keep(sandbox))
        try:
            await sandbox.started()
        except asyncio.CancelledError:
            sandbox.stop()
            raise
        return sandbox

    def get(self, sandbox_id: SandboxId) -> Sandbox:
        """The sandbox, in whatever state; raises NotFound (``sandbox_not_found``)."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise NotFound(f"There is no sandbox {sandbox_id} on this host.", slug="sandbox_not_found")
        return sandbox

    def all(self) -> Iterable[Sandbox]:
        """Every sandbox, and every end not yet forgotten."""
        self._forget_old()
        return list(self._sandboxes.values())

    async def destroy(self, sandbox_id: SandboxId) -> None:
        """Make sure that the sandbox is not there; returns when nothing of it is left. Unknown ids are fine."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return
        sandbox.stop()
        try:
            async with asyncio.timeout(DESTROY_LIMIT_S):
                await sandbox.ended()
        except TimeoutError as error:
            raise Timeout("The sandbox is still being taken down; ask again.", slug="destroy_slow") from error
        self._sandboxes.pop(sandbox_id, None)

    async def close(self, limit_s: float) -> None:
        """Take no more and destroy all, side by side, within ``limit_s``."""
        self._closing = True
        living = list(self._sandboxes.values())
        for sandbox in living:
            sandbox.stop()
        try:
            async with asyncio.timeout(limit_s):
                for sandbox in living:
                    await sandbox.ended()
        except TimeoutError:
            left = [str(s.request.id) for s in living if s.ended_at_s is None]
            log.error("sandboxes not taken down in time", sandboxes=left)

    async def _keep(self, sandbox: Sandbox) -> None:
        await sandbox.run()
        if sandbox.failure is not None or not sandbox.reason_slug:
            self._sandboxes.pop(sandbox.request.id, None)

    def _forget_old(self) -> None:
        now = time.monotonic()
        ended = [(s.ended_at_s, s) for s in self._sandboxes.values() if s.ended_at_s is not None]
        ended.sort(key=lambda pair: pair[0])
        surplus = max(0, len(ended) - MAX_REMEMBERED)
        for number, (ended_at_s, sandbox) in enumerate(ended):
            old = sandbox.state is State.STOPPED and now - ended_at_s > REMEMBER_S
            if old or number < surplus:
                del self._sandboxes[sandbox.request.id]
