"""Take over a sandbox whose agent was killed or replaced: its VMM never noticed.

It goes on from wherever the agent left it: a machine that stood still in the middle of a pause or snapshot runs again,
an overlay that was never used is removed, and a pause that was durable already is brought to its end.

What was written since the last build is nowhere but in that machine. So a step that fails is done again for as long as
the machine lives, and until all steps are done only two things end it: that somebody destroys the sandbox, or that its
pause was durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

import structlog

from wrenn_sandbox.core.errors import NotFound, Unavailable, WrennError, first_cause
from wrenn_sandbox.disk.build import Build
from wrenn_sandbox.hostagent import journal, moment
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.identity import RELAY_CONNECT_LIMIT_S
from wrenn_sandbox.hostagent.journal import Record
from wrenn_sandbox.hostagent.parts import Ground, Parts
from wrenn_sandbox.hostagent.threads import in_thread
from wrenn_sandbox.net.network import Link
from wrenn_sandbox.rpc.relay import relay_session
from wrenn_sandbox.vmm.driver import Machine, MachineFiles, MachineSpec

T = TypeVar("T")

_sleep = asyncio.sleep

log = structlog.get_logger()

#: Between a step that failed and the next try.
_AGAIN_S, _AGAIN_EVERY_S = (0.5, 1.0, 2.0, 5.0, 10.0), 30.0


class WasPaused(Exception):
    """The pause of this sandbox was durable when its agent died."""


@dataclass(frozen=True, slots=True)
class Found:
    """A directory that a dead agent left, and what it wrote there."""

    directory: Path
    record: Record


async def adopt(found: Found, host: Host, stack: AsyncExitStack, started: Callable[[Machine], None]) -> Parts:
    """Acquire all parts, on ``stack``, and let the sandbox go on.

    Raises Unavailable (``vmm_died``) when its VMM has gone, WasPaused when it is to be released.
    """
    record, directory = found.record, found.directory
    await _own(found, host, stack)
    pid = await _patiently(directory, "find its VMM", lambda: in_thread(_pid, directory))
    stack.enter_context(host.capacity.taken(record.request.spec.shape, pid))
    parent = await _patiently(directory, "find its build", lambda: in_thread(host.builds.store.get, record.parent))
    link = await _patiently(directory, "take its network", lambda: _link(found, host, stack))
    stack.push_async_callback(journal.end_vmm, directory)  # before its network goes, and with it the uid
    spec = await _patiently(directory, "find its disks", lambda: in_thread(_machine_spec, found, host, parent, link))
    machine = await _patiently(directory, "take its VMM", lambda: _machine(spec, pid, host, stack))
    started(machine)
    guest = await stack.enter_async_context(host.open_guest(link.slot.host_ip, record.request.spec.access_token))
    relay = await stack.enter_async_context(relay_session(connect_timeout_s=RELAY_CONNECT_LIMIT_S))
    parts = Parts(directory, link, machine, guest, relay, Ground(parent.manifest, record.memory, spec.files.disk))
    if await _patiently(directory, "look at its disks", lambda: _is_paused(found, parts, host)):
        raise WasPaused
    await moment.go_on(record.request, parts)
    return parts


async def let_go(found: Found, host: Host, stack: AsyncExitStack) -> Parts:
    """Of a sandbox that is paused already, acquire what is left, to be released. Raises WasPaused."""
    await _own(found, host, stack)
    raise WasPaused


async def legible(directory: Path, stack: AsyncExitStack) -> Record:
    """The record of a machine whose VMM lives, as soon as it can be read. Raises Unavailable (``vmm_died``)."""
    await stack.enter_async_context(journal.found_directory(directory))
    return await _patiently(directory, "read its record", lambda: in_thread(_record, directory))


async def _patiently(directory: Path, what: str, step: Callable[[], Awaitable[T]]) -> T:
    """Do ``step`` until it succeeds. Raises Unavailable (``vmm_died``) when the machine has gone."""
    for pause_s in chain(_AGAIN_S, repeat(_AGAIN_EVERY_S)):
        try:
            return await step()
        except Exception as error:
            cause = first_cause(error)
            if isinstance(cause, Unavailable) and cause.slug == "vmm_died":
                raise
            if not await in_thread(journal.vmm_lives, directory):
                raise _gone() from error
            log.error(
                "a machine that runs cannot be taken over yet: it is left alone and tried again. Destroy the sandbox to"
                " end it",
                directory=str(directory), step=what, error=str(cause) or repr(cause),
                exc_info=not isinstance(cause, (WrennError, OSError, journal.Unreadable)),
            )  # fmt: skip
        await _sleep(pause_s)
    raise AssertionError("unreachable")


async def _own(found: Found, host: Host, stack: AsyncExitStack) -> None:
    stack.push_async_callback(host.network.give_up, found.record.slot)
    await stack.enter_async_context(journal.found_directory(found.directory))


def _record(directory: Path) -> Record:
    record = journal.read(directory)
    if record is None:
        raise journal.Unreadable(f"{directory / journal.RECORD} is gone.")
    return record


def _pid(directory: Path) -> int:
    pid = journal.vmm_pid(directory)
    if pid is None:
        raise _gone()
    return pid


async def _link(found: Found, host: Host, stack: AsyncExitStack) -> Link:
    record = found.record
    return await stack.enter_async_context(host.network.adopt(record.slot, record.request.spec.network))


async def _machine(spec: MachineSpec, pid: int, host: Host, stack: AsyncExitStack) -> Machine:
    try:
        return await stack.enter_async_context(host.driver.adopt(spec, pid))
    except NotFound as error:
        raise _gone() from error


async def _is_paused(found: Found, parts: Parts, host: Host) -> bool:
    """Find out which disk the machine writes to; whether that is the disk of the build that the sandbox holds."""
    await moment.find_disk(parts, host.builds)
    held = (await host.builds.held()).get(str(found.record.request.id))
    return held is not None and await in_thread(host.builds.store.is_disk_of, parts.ground.disk, held)


def _gone() -> Unavailable:
    return Unavailable("Its virtual machine ended while no host agent ran.", slug="vmm_died")


def _machine_spec(found: Found, host: Host, parent: Build, link: Link) -> MachineSpec:
    manifest, catalog, spec = parent.manifest, host.catalog, found.record.request.spec
    overlays = journal.overlays(found.directory)
    if not overlays:
        raise Unavailable(f"There is no disk in {found.directory}.", slug="vmm_unresponsive")
    return MachineSpec(
        name=str(found.record.request.id),
        shape=spec.shape,
        platform=manifest.platform,
        files=MachineFiles(
            runtime=catalog.runtime(manifest.artefacts.runtime),
            kernel=catalog.kernel(manifest.artefacts.kernel),
            initramfs=catalog.initramfs(manifest.artefacts.initramfs),
            tools=catalog.tools(manifest.artefacts.tools),
            disk=overlays[-1],
            backing=tuple(reversed(overlays[:-1])),
            memory=found.record.memory,
        ),
        run_dir=journal.vmm_directory(found.directory),
        uid=link.slot.uid,
        gid=link.slot.gid,
        tap_fd=None,
        host_ip=link.slot.host_ip,
    )
