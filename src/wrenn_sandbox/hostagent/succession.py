"""From one host agent to the next: machines run on, and whoever comes takes them over.

::

    agent ends or is killed ──▶ its machines run on, or stand still where it died ──▶ next agent: binds its port
        ▸ rubbish of builds removed ▸ what nobody needs collected ▸ machines taken over ▸ paused ones listed
        ▸ creates let in ▸ what is left of the rest swept behind

Collecting comes first, with the machines' builds spared: a build that was about to be paused into, and that nobody
holds, shares its disk with a machine that will write again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import structlog

from wrenn_sandbox.core.errors import Invalid, WrennError
from wrenn_sandbox.core.ids import BASE_TEMPLATE_ID, SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import SandboxSpec
from wrenn_sandbox.disk.build import Build
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.builds import Claims
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.sandbox import Maker, Sandbox
from wrenn_sandbox.hostagent.steps.adopt import Found, adopt
from wrenn_sandbox.hostagent.threads import in_thread

log = structlog.get_logger()

#: Creates are let in after so long even if a machine has not been taken over yet: whoever uses that one waits on.
TAKE_OVER_LIMIT_S = 20.0


async def take_over(registry: Registry) -> list[Path]:
    """List everything that an earlier agent left as sandboxes; returns when they run again, or are known not to.

    What it returns are the directories of machines that are no sandboxes, for the caller to clear away.
    """
    host = registry.host
    host.run_root.mkdir(parents=True, exist_ok=True, mode=0o700)
    swept = await in_thread(host.builds.store.sweep)
    running = await in_thread(journal.running, host.run_root)
    held = await _held(host)
    left = [path for path in host.run_root.iterdir() if path.is_dir() and path not in running]
    found = [_found(host, Found(path, record), held) for path, record in running.items()]
    records = running.values()
    claims = Claims(frozenset(each.parent for each in records), frozenset(each.memory for each in records))
    await host.builds.collect(claims)
    registry.take_in([*found, *await _paused_ones(host, held, {sandbox.request.id for sandbox in found})])
    with suppress(TimeoutError):
        async with asyncio.timeout(TAKE_OVER_LIMIT_S):
            for sandbox in found:
                await _heard_of(sandbox)
    if swept or found:
        log.info("took over from another agent", sandboxes=len(found), half_made_builds=swept)
    return left


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
    request = found.record.request
    make: Maker = lambda _request, _host, stack, _watch, started: adopt(found, host, stack, started)  # noqa: E731
    sandbox = Sandbox(request, host, make=make, begin=State.RUNNING, build_id=held.get(request.id))
    sandbox.created_at_unix_s = found.record.created_at_unix_s
    return sandbox


async def _paused_ones(host: Host, held: Mapping[SandboxId, UUID], running: Collection[SandboxId]) -> list[Sandbox]:
    paused = []
    for sandbox_id, build_id in held.items():
        if sandbox_id in running:
            continue
        if (build := await host.builds.find(build_id)) is not None:
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
