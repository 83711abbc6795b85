"""Take over a sandbox whose agent was killed or replaced: its VMM never noticed.

It goes on from wherever the agent left it: a machine that stood still in the middle of a pause or snapshot runs again,
an overlay that was never used is removed, and a pause that was durable already is brought to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from wrenn_sandbox.core.errors import NotFound, Unavailable
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
    await stack.enter_async_context(journal.found_directory(directory))
    pid = journal.vmm_pid(directory)
    if pid is None:
        raise _gone()
    stack.enter_context(host.capacity.taken(record.request.spec.shape, pid))
    parent = await in_thread(host.builds.store.get, record.parent)
    link = await stack.enter_async_context(host.network.adopt(record.slot, record.request.spec.network))
    spec = _machine_spec(found, host, parent, link)
    try:
        machine = await stack.enter_async_context(host.driver.adopt(spec, pid))
    except NotFound as error:
        raise _gone() from error
    started(machine)
    guest = await stack.enter_async_context(host.open_guest(link.slot.host_ip, record.request.spec.access_token))
    relay = await stack.enter_async_context(relay_session(connect_timeout_s=RELAY_CONNECT_LIMIT_S))
    parts = Parts(directory, link, machine, guest, relay, Ground(parent.manifest, record.memory, spec.files.disk))
    await moment.find_disk(parts, host.builds)
    held = (await host.builds.held()).get(str(record.request.id))
    own = await host.builds.find(held) if held is not None else None
    if own is not None and moment.is_disk_of(parts, own):
        raise WasPaused
    await moment.go_on(record.request, parts)
    return parts


def _gone() -> Unavailable:
    return Unavailable("Its virtual machine ended while no host agent ran.", slug="vmm_died")


def _machine_spec(found: Found, host: Host, parent: Build, link: Link) -> MachineSpec:
    manifest, catalog, spec = parent.manifest, host.catalog, found.record.request.spec
    overlays = journal.overlays(found.directory)
    if not overlays:
        raise _gone()
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
