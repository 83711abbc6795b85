"""Make a sandbox: from nothing to a guest that has its identity.

Everything it acquires goes on the caller's stack in the order below and leaves it in reverse, whatever happens::

    memory reserved ▸ base template ▸ directory with overlay ▸ link ▸ machine ▸ guest client

Nothing is sent to the guest before ``/init``: the first request is the one that counts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.spec import SandboxSpec
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.guest import Guest, Identity
from wrenn_sandbox.hostagent.host import Base, Host
from wrenn_sandbox.hostagent.phases import Stopwatch
from wrenn_sandbox.hostagent.threads import in_thread
from wrenn_sandbox.net.network import Link
from wrenn_sandbox.rpc.relay import relay_session
from wrenn_sandbox.vmm.driver import Machine, MachineFiles, MachineSpec

#: The restored guest must take its identity within this time.
INIT_LIMIT_S = 10.0
RELAY_CONNECT_LIMIT_S = 5.0
_ENTROPY_BYTES = 64


@dataclass(frozen=True, slots=True)
class Request:
    """The sandbox to be. ``template_id`` is what the guest is told."""

    id: SandboxId
    spec: SandboxSpec
    template_id: str


@dataclass(frozen=True, slots=True)
class Parts:
    """A running sandbox's parts, all owned by the stack they were put on."""

    link: Link
    machine: Machine
    guest: Guest
    relay: aiohttp.ClientSession  # for the ports of its programs


async def create(
    request: Request, host: Host, stack: AsyncExitStack, watch: Stopwatch, started: Callable[[Machine], None]
) -> Parts:
    """Acquire all parts; ``started`` hears of the machine at once, so that its death can end this early.

    Raises WrennErrors; what was acquired until then stays on ``stack``.
    """
    with watch.phase("reserve"):
        reservation = stack.enter_context(host.capacity.reserved(request.spec.shape))
    with watch.phase("template"):
        base = await host.templates.ready(request.spec.shape, lambda doing: setattr(watch, "doing", doing))
    with watch.phase("prepare"):
        directory = stack.enter_context(journal.machine_directory(host.run_root, str(request.id)))
        await in_thread(host.make_overlay, directory / "disk.qcow2", base.disk, "qcow2")
        link = await stack.enter_async_context(host.network.link(request.spec.network))
    with watch.phase("turn"):
        await host.starts.acquire()
    try:
        with watch.phase("restore"):
            spec = machine_spec(request, host, base, directory, link)
            machine = await stack.enter_async_context(host.driver.restore(spec, base.state))
            reservation.pid = machine.pid
            started(machine)
        with watch.phase("init"):
            token = request.spec.access_token
            guest = await stack.enter_async_context(host.open_guest(link.slot.host_ip, token))
            await guest.initialise(identity(request), limit_s=INIT_LIMIT_S)
    finally:
        host.starts.release()
    relay = await stack.enter_async_context(relay_session(connect_timeout_s=RELAY_CONNECT_LIMIT_S))
    return Parts(link, machine, guest, relay)


def machine_spec(request: Request, host: Host, base: Base, directory: Path, link: Link) -> MachineSpec:
    """What the driver has to restore. The platform is the one the base was made with, not today's."""
    manifest, catalog = base.manifest, host.catalog
    return MachineSpec(
        name=str(request.id),
        shape=manifest.shape,
        platform=manifest.platform,
        files=MachineFiles(
            runtime=catalog.runtime(manifest.artefacts.runtime),
            kernel=catalog.kernel(manifest.artefacts.kernel),
            initramfs=catalog.initramfs(manifest.artefacts.initramfs),
            tools=catalog.tools(manifest.artefacts.tools),
            disk=directory / "disk.qcow2",
            backing=(base.disk, catalog.rootfs(manifest.artefacts.rootfs)),
            memory=base.memory,
        ),
        run_dir=journal.vmm_directory(directory),
        uid=link.slot.uid,
        gid=link.slot.gid,
        tap_fd=link.tap_fd,
        host_ip=link.slot.host_ip,
    )


def identity(request: Request) -> Identity:
    """What makes this guest differ from every other one restored from the same memory."""
    spec = request.spec
    return Identity(
        sandbox_id=str(request.id),
        template_id=request.template_id,
        access_token=spec.access_token,
        machine_id=request.id.value.hex,
        entropy=secrets.token_bytes(_ENTROPY_BYTES),
        timestamp_unix_s=time.time(),
        envs=spec.envs,
        default_user=spec.default_user,
        default_workdir=spec.default_workdir,
    )
