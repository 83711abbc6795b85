"""Everything that is done with the moments of sandboxes: pause, resume, snapshots, forks, roll backs.

Every call may be repeated with the same build id: one under way is joined, one that was done is answered again. A
caller that goes away changes nothing: what was begun belongs to the sandbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar
from uuid import UUID

from wrenn_sandbox.core import lifecycle
from wrenn_sandbox.core.errors import AlreadyExists
from wrenn_sandbox.core.ids import SandboxId, TemplateId
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.disk.build import Build
from wrenn_sandbox.hostagent.builds import Kept
from wrenn_sandbox.hostagent.inbox import Operation
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.sandbox import Sandbox
from wrenn_sandbox.hostagent.steps.create import create
from wrenn_sandbox.hostagent.steps.fork import born
from wrenn_sandbox.hostagent.threads import in_thread

T = TypeVar("T")


class Moments:
    """The operations of this host. What belongs to no single sandbox runs in ``group``."""

    def __init__(self, registry: Registry, group: asyncio.TaskGroup) -> None:
        self._registry = registry
        self._builds = registry.host.builds
        self._group = group
        self._forks: dict[UUID, asyncio.Task[tuple[Kept, list[Sandbox]] | Exception]] = {}

    async def pause(self, sandbox_id: SandboxId, build_id: UUID) -> Kept:
        """Returns when the sandbox is paused and its build durable; of one that was paused already, that build."""
        sandbox = self._registry.get(sandbox_id)
        if sandbox.state is State.PAUSED and sandbox.build_id is not None:
            return Kept(await self._get(sandbox.build_id))
        return await sandbox.ask(Operation(Action.PAUSE, build_id)).settled()

    async def resume(self, request: Request) -> Sandbox:
        """Returns when it runs."""
        return await self._registry.resume(request)

    async def snapshot(
        self, sandbox_id: SandboxId, build_id: UUID, template: TemplateId, *, leave_paused: bool = False
    ) -> Kept:
        """Let a template hold the moment of a running or paused sandbox."""
        holder = str(template)
        if (held := (await self._builds.held()).get(holder)) is not None:
            return Kept(await self._get(held))
        sandbox = self._registry.get(sandbox_id)
        if sandbox.state is State.PAUSED and sandbox.build_id is not None:
            kept = Kept(await self._get(sandbox.build_id))
            await self._builds.hold(holder, kept.build.id)
        else:
            action = Action.PAUSE if leave_paused else Action.SNAPSHOT
            kept = await sandbox.ask(Operation(action, build_id, (holder,))).settled()
        self._builds.improve_behind(kept.build.id, cloned=True)
        return kept

    async def forget(self, template: TemplateId) -> None:
        """Let a template hold nothing."""
        await self._builds.release(str(template))

    async def fork(
        self, sandbox_id: SandboxId, build_id: UUID, children: Sequence[Request]
    ) -> tuple[Kept, list[Sandbox]]:
        """Make all children of a running or paused sandbox, or none; returns when they run."""
        fork = self._forks.get(build_id)
        if fork is None:
            fork = self._group.create_task(_caught(partial(self._fork, sandbox_id, build_id, children)))
            self._forks[build_id] = fork
            fork.add_done_callback(lambda _: self._forks.pop(build_id, None))
        outcome = await asyncio.shield(fork)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def rollback(self, sandbox_id: SandboxId, build_id: UUID) -> Sandbox:
        """Put a running sandbox back, in place; returns when it runs again."""
        sandbox = self._registry.get(sandbox_id)
        await self._get(build_id)
        await sandbox.ask(Operation(Action.ROLLBACK, build_id)).settled()
        return sandbox

    async def _fork(
        self, sandbox_id: SandboxId, build_id: UUID, wanted: Sequence[Request]
    ) -> tuple[Kept, list[Sandbox]]:
        await self._registry.opened()
        if (done := await self._forked(build_id, wanted)) is not None:
            return done
        source, host = self._registry.get(sandbox_id), self._registry.host
        lifecycle.require(source.state, Action.FORK)
        host.capacity.require_disk()
        with host.capacity.reserved_together([source.request.spec.shape] * len(wanted)) as reservations:
            if source.build_id is not None and (source.state is State.PAUSED or source.build_id == build_id):
                kept = Kept(await self._get(source.build_id))  # in it already; or an earlier call got this far
            else:
                kept = await source.ask(Operation(Action.FORK, build_id)).settled()
            made = kept.build.id
            async with self._builds.pinned(made):
                await self._builds.flat_for_clones(made)
                children = [
                    Sandbox(
                        replace(request, build_id=made).fitted(kept.build.manifest),
                        host,
                        make=partial(create, reservation=reservation),
                    )
                    for request, reservation in zip(wanted, reservations, strict=True)
                ]
                self._registry.begin(children)
                await born(children)
        self._builds.improve_behind(made)
        return kept, children

    async def _forked(self, build_id: UUID, wanted: Sequence[Request]) -> tuple[Kept, list[Sandbox]] | None:
        """What an earlier call with the same build made; raises AlreadyExists when only some of it is there."""
        there = {sandbox.request.id: sandbox for sandbox in self._registry.all()}
        children = [there[request.id] for request in wanted if request.id in there]
        if not children:
            return None
        build = await self._builds.find(build_id)
        if build is None or len(children) < len(wanted) or any(c.state is not State.RUNNING for c in children):
            raise AlreadyExists(f"There is a sandbox {children[0].request.id} already.", slug="sandbox_exists")
        return Kept(build), children

    async def inventory(self) -> tuple[Sequence[Build], Mapping[str, UUID]]:
        """Every build but the base templates, and which of them each holder keeps."""
        return await in_thread(self._builds.store.all), await self._builds.held()

    async def holders(self, build_id: UUID) -> Sequence[str]:
        """Who keeps a build."""
        return sorted(holder for holder, held in (await self._builds.held()).items() if held == build_id)

    async def _get(self, build_id: UUID) -> Build:
        return await in_thread(self._builds.store.get, build_id)


async def _caught(work: Callable[[], Awaitable[T]]) -> T | Exception:
    """The result or the error of ``work``, which must not end the group that it is a task of."""
    try:
        return await work()
    except Exception as error:
        return error
