"""All sandboxes of this host: the living, the paused, and those whose end somebody has yet to learn of.

A sandbox that ended by itself stays listed: in ``error`` until it is resumed or destroyed, ``stopped`` (idle timeout,
deadline) for ``REMEMBER_S``. One that never started, or was destroyed on request, leaves at once; a paused one stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog

from wrenn_sandbox.core import lifecycle
from wrenn_sandbox.core.errors import AlreadyExists, NotFound, Timeout, Unavailable, WrennError
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent.builds import Claims
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.sandbox import Sandbox
from wrenn_sandbox.hostagent.threads import in_thread

log = structlog.get_logger()

REMEMBER_S = 600.0
#: A bound for what is remembered of the dead; beyond it the oldest goes.
MAX_REMEMBERED = 10_000
DESTROY_LIMIT_S = 60.0
OPEN_LIMIT_S = 30.0


class Registry:
    """Owner of the sandboxes; their tasks live in ``group``."""

    def __init__(self, host: Host, group: asyncio.TaskGroup) -> None:
        self.host = host
        self._group = group
        self._sandboxes: dict[SandboxId, Sandbox] = {}
        self._known, self._open, self._closing = asyncio.Event(), asyncio.Event(), False
        host.builds.claims = self._claims

    def open(self) -> None:
        """Let creates in: nothing of a dead agent is in the way any more."""
        self._known.set()
        self._open.set()

    async def complete(self) -> None:
        """Wait until all sandboxes are listed that an earlier agent left. Raises Unavailable (``agent_starting``)."""
        await _in_time(self._known)

    async def opened(self) -> None:
        """Wait until creates are let in. Raises Unavailable (``agent_starting``, ``agent_stopping``)."""
        await _in_time(self._open)
        if self._closing:
            raise Unavailable("This host agent is stopping; try another host.", slug="agent_stopping")

    async def create(self, request: Request) -> Sandbox:
        """Make a sandbox and wait until it runs. A caller that goes away meanwhile takes it along."""
        await self.opened()
        sandbox = Sandbox(await self._fitted(request), self.host)
        self.begin([sandbox])
        try:
            await sandbox.started()
        except asyncio.CancelledError:
            sandbox.stop()
            raise
        return sandbox

    async def resume(self, request: Request) -> Sandbox:
        """Run a sandbox from one of its builds and wait until it does; a failure leaves it as it was.

        A caller that goes away changes nothing.
        """
        await self.opened()
        old = self._sandboxes.get(request.id)
        if old is not None and old.state in (State.RUNNING, State.RESUMING):
            await old.started()
            return old
        if old is not None and old.state is not State.ERROR:
            lifecycle.require(old.state, Action.RESUME)
        request = await self._fitted(request)
        if self._sandboxes.get(request.id) is not old:
            return await self.resume(request)
        build_id = old.build_id if old is not None else None
        sandbox = Sandbox(request, self.host, begin=State.RESUMING, build_id=build_id or request.build_id)
        self._sandboxes[request.id] = sandbox
        self._group.create_task(self._keep(sandbox, old))
        await sandbox.started()
        return sandbox

    async def _fitted(self, request: Request) -> Request:
        if request.build_id is None:
            return request
        return request.fitted((await in_thread(self.host.builds.store.get, request.build_id)).manifest)

    def begin(self, sandboxes: Iterable[Sandbox]) -> None:
        """Start the tasks of all or none; raises AlreadyExists (``sandbox_exists``)."""
        self._forget_old()
        new = list(sandboxes)
        for sandbox in new:
            if sandbox.request.id in self._sandboxes:
                message = f"There is a sandbox {sandbox.request.id} on this host already."
                raise AlreadyExists(message, slug="sandbox_exists")
        for sandbox in new:
            self._sandboxes[sandbox.request.id] = sandbox
            self._group.create_task(self._keep(sandbox))

    def take_in(self, sandboxes: Iterable[Sandbox]) -> None:
        """All that an earlier agent left: those that run and are taken over, and the paused."""
        for sandbox in sandboxes:
            self._sandboxes[sandbox.request.id] = sandbox
            if sandbox.is_living:
                self._group.create_task(self._keep(sandbox, sandbox))
        self._known.set()

    def get(self, sandbox_id: SandboxId) -> Sandbox:
        """The sandbox, in whatever state; raises NotFound (``sandbox_not_found``)."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise NotFound(f"There is no sandbox {sandbox_id} on this host.", slug="sandbox_not_found")
        return sandbox

    def all(self) -> list[Sandbox]:
        """Every sandbox, and every end not yet forgotten."""
        self._forget_old()
        return list(self._sandboxes.values())

    def _claims(self) -> Claims:
        """What all of them need of the builds."""
        each = [sandbox.claims for sandbox in self._sandboxes.values()]
        return Claims(
            frozenset(build_id for claims in each for build_id in claims.builds),
            frozenset(path for claims in each for path in claims.memories),
        )

    async def destroy(self, sandbox_id: SandboxId) -> None:
        """Make sure that the sandbox is not there; returns when nothing of it is left. Unknown ids are fine."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is not None:
            sandbox.stop()
            try:
                async with asyncio.timeout(DESTROY_LIMIT_S):
                    await sandbox.ended()
            except TimeoutError as error:
                raise Timeout("The sandbox is still being taken down; ask again.", slug="destroy_slow") from error
        await self.host.builds.release(str(sandbox_id))
        there = self._sandboxes.get(sandbox_id)  # by now perhaps the paused one that it was to be resumed from
        if there is not None and not there.is_living:
            del self._sandboxes[sandbox_id]

    def refuse(self) -> None:
        """Take no more."""
        self._closing = True

    async def close(self, limit_s: float) -> None:
        """Take no more and destroy what lives, side by side, within ``limit_s``; the paused stay."""
        self.refuse()
        living = [sandbox for sandbox in self._sandboxes.values() if sandbox.is_living]
        for sandbox in living:
            sandbox.stop()
        try:
            async with asyncio.timeout(limit_s):
                for sandbox in living:
                    await sandbox.ended()
        except TimeoutError:
            left = [str(s.request.id) for s in living if s.is_living]
            log.error("sandboxes not taken down in time", sandboxes=left)

    async def _keep(self, sandbox: Sandbox, before: Sandbox | None = None) -> None:
        """Own one sandbox's task. ``before`` is what stands in its place again when it never ran."""
        await sandbox.run()
        sandbox_id = sandbox.request.id
        if self._sandboxes.get(sandbox_id) is not sandbox:
            return
        if sandbox.failure is not None and before is not None:
            self._sandboxes[sandbox_id] = before
        elif sandbox.failure is not None:
            del self._sandboxes[sandbox_id]
        elif sandbox.state is State.STOPPED:
            try:
                await self.host.builds.release(str(sandbox_id))
            except WrennError as error:  # it stays listed until somebody destroys it with more success
                log.error("the build of a stopped sandbox stays", sandbox=str(sandbox_id), error=error.message)
                return
            if not sandbox.reason_slug and self._sandboxes.get(sandbox_id) is sandbox:
                del self._sandboxes[sandbox_id]

    def _forget_old(self) -> None:
        now = time.monotonic()
        ended = [(s.ended_at_s, s) for s in self._sandboxes.values() if s.ended_at_s is not None]
        ended = [(at_s, s) for at_s, s in ended if s.build_id is None or s.state is State.STOPPED]
        ended.sort(key=lambda pair: pair[0])
        surplus = max(0, len(ended) - MAX_REMEMBERED)
        for number, (ended_at_s, sandbox) in enumerate(ended):
            old = sandbox.state is State.STOPPED and now - ended_at_s > REMEMBER_S
            if old or number < surplus:
                del self._sandboxes[sandbox.request.id]


async def _in_time(event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(OPEN_LIMIT_S):
            await event.wait()
    except TimeoutError as error:
        message = "This host agent still takes over from another; try again."
        raise Unavailable(message, slug="agent_starting", retry_after_s=5) from error
