"""Make a sandbox: from nothing, or from a build, to a guest that has its identity.

Everything it acquires goes on the caller's stack in the order below and leaves it in reverse, whatever happens::

    memory reserved ▸ base template or build ▸ directory with overlay ▸ link ▸ machine ▸ guest client ▸ written down

Nothing is sent to the guest before ``/init``: the first request is the one that counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.disk.build import Build
from wrenn_sandbox.hostagent import journal, moment
from wrenn_sandbox.hostagent.builds import FORK_FLAT_BYTES
from wrenn_sandbox.hostagent.capacity import Reservation
from wrenn_sandbox.hostagent.host import Host, Origin
from wrenn_sandbox.hostagent.identity import INIT_LIMIT_S, RELAY_CONNECT_LIMIT_S, identity
from wrenn_sandbox.hostagent.parts import Ground, Parts
from wrenn_sandbox.hostagent.phases import Stopwatch
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.threads import in_thread
from wrenn_sandbox.net.network import Link
from wrenn_sandbox.rpc.relay import relay_session
from wrenn_sandbox.vmm.driver import Machine, MachineFiles, MachineSpec

log = structlog.get_logger()


async def create(
    request: Request,
    host: Host,
    stack: AsyncExitStack,
    watch: Stopwatch,
    started: Callable[[Machine], None],
    *,
    reservation: Reservation | None = None,
) -> Parts:
    """Acquire all parts; ``started`` hears of the machine at once, so that its death can end this early.

    ``reservation`` is what was set aside for it already. Raises WrennErrors; what was acquired until then stays on
    ``stack``.
    """
    capacity = host.capacity
    with watch.phase("reserve"):
        if reservation is None:
            reservation = stack.enter_context(capacity.reserved(request.spec.shape))
        else:
            reservation = stack.enter_context(capacity.handed_over(reservation))
    async with AsyncExitStack() as restoring:  # what is needed only until the machine runs
        with watch.phase("template"):
            origin = await restoring.enter_async_context(_origin(request, host, watch))
        with watch.phase("prepare"):
            directory = stack.enter_context(journal.machine_directory(host.run_root, str(request.id)))
            disk = journal.overlay(directory, 0)
            await in_thread(host.make_overlay, disk, origin.layers[0], "qcow2")
            link = await stack.enter_async_context(host.network.link(request.spec.network))
        with watch.phase("turn"):
            await host.starts.acquire()
        restoring.callback(host.starts.release)
        with watch.phase("restore"):
            spec = machine_spec(request, host, origin, directory, link)
            machine = await stack.enter_async_context(host.driver.restore(spec, origin.state))
            reservation.pid = machine.pid
            started(machine)
        with watch.phase("init"):
            token = request.spec.access_token
            guest = await stack.enter_async_context(host.open_guest(link.slot.host_ip, token))
            await guest.initialise(identity(request), limit_s=INIT_LIMIT_S, known_token=origin.manifest.access_token)
        relay = await stack.enter_async_context(relay_session(connect_timeout_s=RELAY_CONNECT_LIMIT_S))
        parts = Parts(directory, link, machine, guest, relay, Ground(origin.manifest, origin.memory, disk))
        moment.note(request, parts)
    return parts


@asynccontextmanager
async def _origin(request: Request, host: Host, watch: Stopwatch) -> AsyncIterator[Origin]:
    """What to restore; a build's files stay where they are within the context."""
    if request.build_id is None:
        base = await host.templates.ready(request.spec.shape, lambda doing: setattr(watch, "doing", doing))
        yield Origin.of_base(base, host.catalog)
        return
    async with host.builds.pinned(request.build_id) as build:
        origin = await in_thread(Origin.of_build, build)
        if origin.patched_bytes > FORK_FLAT_BYTES and build.manifest.sandbox_id != str(request.id):
            watch.doing = "laying the snapshot's memory flat"
            origin = await _shared_with_siblings(host, build) or origin
        yield origin


async def _shared_with_siblings(host: Host, build: Build) -> Origin | None:
    """The origin of a clone when the memory of the build is one file; None when there is no room for that."""
    try:
        await host.builds.flat_for_clones(build.id)
    except WrennError as error:
        log.warning("clones do not share their memory", build=str(build.id), slug=error.slug, reason=error.message)
        return None
    return await in_thread(Origin.of_build, build)


def machine_spec(request: Request, host: Host, origin: Origin, directory: Path, link: Link) -> MachineSpec:
    """What the driver has to restore. The platform is the one the build was made with, not today's."""
    manifest, catalog = origin.manifest, host.catalog
    return MachineSpec(
        name=str(request.id),
        shape=manifest.shape,
        platform=manifest.platform,
        files=MachineFiles(
            runtime=catalog.runtime(manifest.artefacts.runtime),
            kernel=catalog.kernel(manifest.artefacts.kernel),
            initramfs=catalog.initramfs(manifest.artefacts.initramfs),
            tools=catalog.tools(manifest.artefacts.tools),
            disk=journal.overlay(directory, 0),
            backing=origin.layers,
            memory=origin.memory,
            patches=origin.patches,
        ),
        run_dir=journal.vmm_directory(directory),
        uid=link.slot.uid,
        gid=link.slot.gid,
        tap_fd=link.tap_fd,
        host_ip=link.slot.host_ip,
    )
