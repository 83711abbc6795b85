"""From one host agent to the next: machines run on, and whoever comes takes them over.

::

    agent ends or is killed ──▶ its machines run on, or stand still where it died ──▶ next agent: binds its port
        ▸ rubbish of builds removed ▸ what nobody needs collected ▸ machines taken over ▸ paused ones listed
        ▸ creates let in ▸ what is left of the rest swept behind

Collecting comes first, with the machines' builds spared: a build that was about to be paused into, and that nobody
holds, shares its disk with a machine that will write again. A pause that was durable and held, but not answered, shows
in that the machine's newest overlay is the disk of the held build; whether the machine lives is of no account then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from uuid import UUID

import structlog

from wrenn_sandbox.core.errors import Invalid, WrennError
from wrenn_sandbox.core.ids import BASE_TEMPLATE_ID, SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, SandboxSpec
from wrenn_sandbox.disk.build import Build
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.builds import Claims
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.parts import Parts
from wrenn_sandbox.hostagent.phases import Stopwatch
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.sandbox import Maker, Sandbox
from wrenn_sandbox.hostagent.steps.adopt import Found, adopt, legible, let_go
from wrenn_sandbox.hostagent.threads import in_thread
from wrenn_sandbox.vmm.driver import Machine

log = structlog.get_logger()

#: Creates are let in after so long even if a machine has not been taken over yet: whoever uses that one waits on.
TAKE_OVER_LIMIT_S = 20.0


async def take_over(registry: Registry) -> list[Path]:
    """List everything that an earlier agent left as sandboxes; returns when they run again, or are known not to.

    Not longer than ``TAKE_OVER_LIMIT_S``: what cannot be taken over by then is tried on behind. What it returns are the
    directories of machines that are no sandboxes, for the caller to clear away.
    """
    host = registry.host
    host.run_root.mkdir(parents=True, exist_ok=True, mode=0o700)
    swept = await in_thread(host.builds.store.sweep)
    left = await in_thread(journal.survey, host.run_root)
    held = await _held(host)
    found = [await in_thread(_found, host, Found(path, record), held) for path, record in left.running.items()]
    known = {sandbox.request.id for sandbox in found}
    strangers = {name: path for path, name in left.unreadable.items() if name not in known}
    found += [await in_thread(_unreadable, host, path, name, held) for name, path in strangers.items()]
    host.network.reserve(record.slot for record in left.running.values())
    claims = [sandbox.claims for sandbox in found]
    builds, memories = (each.builds for each in claims), (each.memories for each in claims)
    await host.builds.collect(Claims(frozenset().union(*builds), frozenset().union(*memories)))
    registry.take_in([*found, *await _paused_ones(host, held, {sandbox.request.id for sandbox in found})])
    with suppress(TimeoutError):
        async with asyncio.timeout(TAKE_OVER_LIMIT_S):
            for sandbox in found:
                await _heard_of(sandbox)
    if swept or found:
        log.info("took over from another agent", sandboxes=len(found), half_made_builds=swept)
    return list(left.rubbish)


async def _heard_of(sandbox: Sandbox) -> None:
    try:
        await sandbox.started()
    except WrennError as error:
        log.error("sandbox lost", sandbox=str(sandbox.request.id), slug=error.slug, reason=error.message)


async def leave(registry: Registry, limit_s: float) -> None:
    """Before an agent ends: what is being made goes, operations come to their end."""
    living = [sandbox for sandbox in registry.all() if sandbox.is_living]
    for sandbox in living:
        if sandbox.state in (State.STARTING, State.RESUMING):
            sandbox.stop()
    try:
        async with asyncio.timeout(limit_s):
            for sandbox in living:
                if sandbox.state not in (State.RUNNING, State.PAUSING):
                    await sandbox.ended()
                elif (operation := sandbox.operation) is not None:
                    with suppress(WrennError):
                        await operation.settled()
    except TimeoutError:
        log.warning("an operation is left to the next agent")


async def _held(host: Host) -> Mapping[SandboxId, UUID]:
    """The builds that sandboxes hold."""
    found = {}
    for holder, build_id in (await host.builds.held()).items():
        try:
            found[SandboxId.parse(holder)] = build_id
        except Invalid:  # a template's
            continue
    return found


def _found(host: Host, found: Found, held: Mapping[SandboxId, UUID]) -> Sandbox:
    """A machine that is to be taken over; or, when it had been paused but for its release, to be released. Blocks."""
    request, record = found.record.request, found.record
    overlays, build_id = journal.overlays(found.directory), held.get(request.id)
    paused = False
    if build_id is not None and overlays:
        with suppress(WrennError):  # then it is looked at again when it is taken over
            paused = host.builds.store.is_disk_of(overlays[-1], build_id)
    make: Maker = lambda _request, _host, stack, _watch, started: (  # noqa: E731
        let_go(found, host, stack) if paused else adopt(found, host, stack, started)
    )
    sandbox = Sandbox(request, host, make=make, begin=State.PAUSING if paused else State.RUNNING, build_id=build_id)
    sandbox.created_at_unix_s = record.created_at_unix_s
    sandbox.left = Claims(frozenset({record.parent}), frozenset({record.memory}))
    return sandbox


def _unreadable(host: Host, directory: Path, sandbox_id: SandboxId, held: Mapping[SandboxId, UUID]) -> Sandbox:
    """A machine that runs and whose record cannot be read: it is taken over as soon as that can be. Blocks.

    Which builds it stands on is not known, so it needs all there are.
    """
    slot = journal.slot_number(directory)
    host.network.reserve([slot] if slot is not None else [])

    async def make(
        _request: Request, _host: Host, stack: AsyncExitStack, _watch: Stopwatch, started: Callable[[Machine], None]
    ) -> Parts:
        if slot is not None:
            stack.push_async_callback(host.network.give_up, slot)
        record = await legible(directory, stack)
        sandbox.request, sandbox.created_at_unix_s = record.request, record.created_at_unix_s
        sandbox.timers.replace(record.request.spec.lifetime, time.monotonic())
        return await adopt(Found(directory, record), host, stack, started)

    build_id = held.get(sandbox_id)
    sandbox = Sandbox(_unknown(sandbox_id), host, make=make, begin=State.RUNNING, build_id=build_id)
    builds = host.builds.store.all()
    sandbox.left = Claims(
        frozenset(build.id for build in builds), frozenset(path for b in builds if (path := b.flat) is not None)
    )
    return sandbox


async def _paused_ones(host: Host, held: Mapping[SandboxId, UUID], running: Collection[SandboxId]) -> list[Sandbox]:
    paused = []
    for sandbox_id, build_id in held.items():
        if sandbox_id in running:
            continue
        try:
            build = await host.builds.find(build_id)
        except (WrennError, OSError) as error:
            log.error("the build of a paused sandbox is broken", sandbox=str(sandbox_id), error=str(error))
            paused.append(Sandbox.over(_unknown(sandbox_id, build_id), host, State.PAUSED, build_id))
            continue
        if build is not None:
            paused.append(_paused(host, sandbox_id, build))
        else:
            log.error("the build of a paused sandbox is gone", sandbox=str(sandbox_id), build=str(build_id))
    return paused


def _paused(host: Host, sandbox_id: SandboxId, build: Build) -> Sandbox:
    """Of what it was asked to be, only what its build says is known; a resume says the rest again."""
    manifest = build.manifest
    request = Request(sandbox_id, SandboxSpec(manifest.template, manifest.shape), str(BASE_TEMPLATE_ID.value), build.id)
    sandbox = Sandbox.over(request, host, State.PAUSED, build.id)
    sandbox.created_at_unix_s = manifest.created_at_unix_s
    return sandbox


def _unknown(sandbox_id: SandboxId, build_id: UUID | None = None) -> Request:
    """Of a sandbox about which nothing can be read but whose it is."""
    return Request(sandbox_id, SandboxSpec("", DEFAULT_SHAPE), str(BASE_TEMPLATE_ID.value), build_id)
