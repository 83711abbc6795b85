"""A moment of a machine: its device state, changed pages and disk layer, and the draft of a build that they go into.

Both ways of taking one share it: a pause, after which the machine is let go, and a snapshot, after which it goes on
above a new overlay. What the machine's own files are called, and which of them are layers of what, is decided here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from uuid import UUID, uuid4

import structlog

from wrenn_sandbox.core.artefacts import Manifest
from wrenn_sandbox.core.errors import Unavailable, WrennError
from wrenn_sandbox.core.extents import Extents
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.disk.build import DISK, HEADER, MEMORY, STATE, Build
from wrenn_sandbox.disk.capture import capture
from wrenn_sandbox.disk.draft import Draft
from wrenn_sandbox.disk.pages import PageSource
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.builds import Builds, Kept
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.identity import INIT_LIMIT_S, identity
from wrenn_sandbox.hostagent.parts import Parts
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.threads import in_thread, threaded
from wrenn_sandbox.vmm.driver import Ram

log = structlog.get_logger()

#: A machine that does not go on is asked again after these, and then every so often.
_RESUME_PAUSES_S, _RESUME_EVERY_S = (0.2, 1.0, 5.0), 10.0


@dataclass(slots=True)
class Clock:
    """When what happened (``time.perf_counter``, seconds)."""

    stopped: float = 0.0
    captured: float = 0.0
    going: float = 0.0  # it runs again; 0 while it does not

    def kept(self, build: Build) -> Kept:
        """The build, durable now."""
        now = time.perf_counter()
        ends = (self.going or now, self.captured, now)
        return Kept(build, *(1000 * (end - self.stopped) for end in ends))


@dataclass(frozen=True, slots=True)
class Sitting:
    """A machine that is about to have its moment taken: the build to be, and what it is compared with."""

    draft: Draft
    below: PageSource
    manifest: Manifest
    clock: Clock


@asynccontextmanager
async def sitting(request: Request, parts: Parts, host: Host, build_id: UUID) -> AsyncIterator[Sitting]:
    """Everything that can be made ready while the machine still runs."""
    if not await parts.machine.writes_to(parts.ground.disk):
        await find_disk(parts, host.builds)
    if parts.ground.recorded is not None:
        _note_parent(request, parts)
    await _settle_pending(request, parts, host)
    khz = await in_thread(host.driver.tsc_khz)
    async with host.builds.draft(build_id, parts.ground.parent_id) as draft:
        parent = await in_thread(host.builds.store.get, parts.ground.parent_id)
        async with threaded(parent.source()) as below:
            yield Sitting(draft, below, _manifest(request, parts, build_id, khz), Clock())


async def take_pages(parts: Parts, being: Sitting) -> None:
    """The changed pages of a machine that stands still, into the page cache."""
    header = await in_thread(_pages, parts.machine.ram, being.below, being.draft)
    being.clock.captured = time.perf_counter()
    await in_thread(being.draft.write_header, header)


def _pages(ram: Ram, below: PageSource, draft: Draft) -> Header:
    return below.header.extended(draft.build_id, capture(ram, below, draft.memory).extents)


def _manifest(request: Request, parts: Parts, build_id: UUID, khz: int) -> Manifest:
    """What the build is. How it can be run, it has from its parent."""
    spec, parent = request.spec, str(parts.ground.parent_id)
    return replace(
        parts.ground.parent,
        build_id=str(build_id),
        template=spec.template,
        created_at_unix_s=time.time(),
        disk=DISK,
        memory=MEMORY,
        state=STATE,
        memory_header=HEADER,
        parent=parent,
        disk_chain=(parent,),
        sandbox_id=str(request.id),
        default_user=spec.default_user,
        default_workdir=spec.default_workdir,
        envs=dict(spec.envs),
        access_token=spec.access_token,
        hashes={},
        tsc_khz=khz,
    )


async def let_run(request: Request, parts: Parts) -> None:
    """Let a machine that may stand still run again. It is asked until it does: only its end, which cancels this, or
    that of the agent, after which the next one asks, is another way out.
    """
    for pause_s in chain(_RESUME_PAUSES_S, repeat(_RESUME_EVERY_S)):
        try:
            await parts.machine.resume()
        except WrennError as error:
            log.error("machine not resumed", sandbox=str(request.id), slug=error.slug, reason=error.message)
            await asyncio.sleep(pause_s)
        else:
            return


async def go_on(request: Request, parts: Parts) -> None:
    """The same, and its guest serves its ports again. A guest that does not take its identity runs on with the old."""
    await let_run(request, parts)
    try:
        token = request.spec.access_token
        await parts.guest.initialise(identity(request), limit_s=INIT_LIMIT_S, known_token=token)
    except WrennError as error:
        log.error("guest not woken", sandbox=str(request.id), slug=error.slug, reason=error.message)


def new_overlay(parts: Parts, host: Host) -> Path:
    """The new file of an empty overlay above the present one. Blocks."""
    top = journal.overlays(parts.directory)[-1]
    path = journal.overlay(parts.directory, journal.number(top) + 1)
    host.make_overlay(path, parts.ground.disk, "qcow2")
    return path


def cover(parts: Parts, overlay: Path) -> None:
    """The machine writes to ``overlay`` from now on; what it wrote to before is a layer without a build yet."""
    ground = parts.ground
    ground.pending = (*ground.pending, ground.disk)
    ground.disk = overlay


def stand_on(request: Request, parts: Parts, build: Build) -> None:
    """The lowest layer without a build has become the disk of ``build``, on which the machine stands now."""
    ground = parts.ground
    layer, ground.pending = ground.pending[0], ground.pending[1:]
    ground.recorded = ground.recorded or ground.parent_id
    ground.parent = build.manifest
    _note_parent(request, parts)
    layer.unlink(missing_ok=True)  # the build has it under a name of its own


def _note_parent(request: Request, parts: Parts) -> None:
    """Without room for that the old parent stays, and the next moment tries again: the new one is durable already."""
    try:
        note(request, parts)
    except OSError as error:
        log.error("the record of a machine names an old build", sandbox=str(request.id), error=str(error))
    else:
        parts.ground.recorded = None


async def find_disk(parts: Parts, builds: Builds) -> None:
    """Find out which overlay the machine writes to, when a snapshot was broken off; remove the one it does not."""
    there = journal.overlays(parts.directory)
    tops = [path for path in there if await parts.machine.writes_to(path)]
    if not tops:
        raise Unavailable("The virtual machine does not write to any of its disks.", slug="vmm_unresponsive")
    parent = await in_thread(builds.store.get, parts.ground.parent_id)
    pending = []
    for path in there:
        below = journal.number(path) < journal.number(tops[0])
        if path != tops[0] and (not below or _same_file(path, parent.disk)):
            path.unlink()
        elif below:
            pending.append(path)
    parts.ground.disk, parts.ground.pending = tops[0], tuple(pending)


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def note(request: Request, parts: Parts) -> None:
    """Write down what runs, for the agent after this one."""
    ground = parts.ground
    journal.write(parts.directory, journal.Record(request, parts.link.slot.index, ground.parent_id, ground.memory))


async def _settle_pending(request: Request, parts: Parts, host: Host) -> None:
    """Make builds of layers that an earlier snapshot left without one, so that a new build can stand on them.

    Each is a build whose memory is its parent's: nothing is restored from it, but layers lie above it.
    """
    while parts.ground.pending:
        parent, layer = parts.ground.parent_id, parts.ground.pending[0]
        async with host.builds.draft(uuid4(), parent) as draft:
            await in_thread(_fill, draft, host.builds, parent, layer)
            build = await host.builds.keep(draft, _manifest(request, parts, draft.build_id, 0), ())
            stand_on(request, parts, build)


def _fill(draft: Draft, builds: Builds, parent: UUID, layer: Path) -> None:
    draft.state.touch()
    draft.memory.touch()
    draft.write_header(builds.store.get(parent).header.extended(draft.build_id, Extents.of(())))
    draft.take_disk(layer)
