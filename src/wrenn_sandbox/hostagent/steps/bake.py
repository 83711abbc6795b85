"""Bake a base template: boot a guest, let it warm up, make it quiet, keep its memory.

The result appears under its final name only when it is complete and on disk (written aside, fsynced, renamed). A bake
that fails or is cancelled leaves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import structlog

from wrenn_sandbox import __version__
from wrenn_sandbox.core.artefacts import ArtefactSet, Manifest, Platform
from wrenn_sandbox.core.errors import Unavailable, WrennError
from wrenn_sandbox.core.spec import Egress, NetworkPolicy, Shape
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.capacity import Capacity
from wrenn_sandbox.hostagent.guest import Guest
from wrenn_sandbox.hostagent.host import GuestOpener, OverlayMaker
from wrenn_sandbox.hostagent.tasks import side_tasks
from wrenn_sandbox.hostagent.threads import in_thread
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.net.network import Link, Network
from wrenn_sandbox.vmm.driver import Driver, Machine, MachineFiles, MachineSpec

log = structlog.get_logger()

BOOT_LIMIT_S = 120.0
PREPARE_LIMIT_S = 30.0
_LOCK_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Kitchen:
    """What a bake needs of its host."""

    driver: Driver
    network: Network
    catalog: Catalog
    capacity: Capacity
    make_overlay: OverlayMaker
    open_guest: GuestOpener
    run_root: Path


@dataclass(frozen=True, slots=True)
class Order:
    """The base to make; ``key`` names its directory."""

    key: str
    artefacts: ArtefactSet
    platform: Platform
    shape: Shape


async def bake(order: Order, kitchen: Kitchen) -> Path:
    """The directory of the finished base; made here, or by another agent that was faster."""
    bases = kitchen.catalog.bases
    bases.mkdir(parents=True, exist_ok=True)
    final, aside = bases / order.key, bases / f".{order.key}.new"
    async with _locked(bases / f".{order.key}.lock"):
        if (final / "manifest.json").exists():
            return final
        await in_thread(shutil.rmtree, aside, ignore_errors=True)
        try:
            aside.mkdir()
            await _cook(order, kitchen, aside)
            await in_thread(_finish, aside, final, _manifest(order, await in_thread(kitchen.driver.tsc_khz)))
        except BaseException:
            await in_thread(shutil.rmtree, aside, ignore_errors=True)
            raise
    return final


async def _cook(order: Order, kitchen: Kitchen, aside: Path) -> None:
    """Leave disk, memory and state of a quiet guest in ``aside``. envd warms itself up before it answers /health."""
    rootfs = kitchen.catalog.rootfs(order.artefacts.rootfs)
    async with AsyncExitStack() as stack:
        reservation = stack.enter_context(kitchen.capacity.reserved_for_bake(order.shape))
        name = f"bake-{order.key[:12]}-{secrets.token_hex(3)}"
        directory = stack.enter_context(journal.machine_directory(kitchen.run_root, name))
        link = await stack.enter_async_context(kitchen.network.link(NetworkPolicy(Egress.CLOSED)))
        await in_thread(kitchen.make_overlay, aside / "disk.qcow2", rootfs, "raw")
        spec = _machine_spec(order, kitchen, aside, directory, link)
        machine = await stack.enter_async_context(kitchen.driver.boot(spec))
        reservation.pid = machine.pid
        async with side_tasks() as beside, kitchen.open_guest(link.slot.host_ip, "") as guest:
            watcher = beside.create_task(_fail_at_end(machine))
            await _until_quiet(guest, machine)
            watcher.cancel()
        await machine.pause()
        await machine.snapshot(aside / "state")


async def _until_quiet(guest: Guest, machine: Machine) -> None:
    try:
        await guest.healthy(limit_s=BOOT_LIMIT_S)
        await guest.prepare_snapshot(limit_s=PREPARE_LIMIT_S)
    except WrennError as error:
        log.error("guest not ready for its snapshot", slug=error.slug, console=getattr(machine, "console", "")[-2000:])
        raise


async def _fail_at_end(machine: Machine) -> None:
    ended = await machine.wait()
    raise Unavailable(f"The template's virtual machine ended: {ended.reason}", slug="vmm_died")


def _machine_spec(order: Order, kitchen: Kitchen, aside: Path, directory: Path, link: Link) -> MachineSpec:
    catalog, artefacts = kitchen.catalog, order.artefacts
    return MachineSpec(
        name=directory.name,
        shape=order.shape,
        platform=order.platform,
        files=MachineFiles(
            runtime=catalog.runtime(artefacts.runtime),
            kernel=catalog.kernel(artefacts.kernel),
            initramfs=catalog.initramfs(artefacts.initramfs),
            tools=catalog.tools(artefacts.tools),
            disk=aside / "disk.qcow2",
            backing=(catalog.rootfs(artefacts.rootfs),),
            memory=aside / "memory",
        ),
        run_dir=journal.vmm_directory(directory),
        uid=link.slot.uid,
        gid=link.slot.gid,
        tap_fd=link.tap_fd,
        host_ip=link.slot.host_ip,
    )


def _manifest(order: Order, tsc_khz: int) -> Manifest:
    return Manifest(
        build_id=str(uuid4()),
        template="base",
        shape=order.shape,
        artefacts=order.artefacts,
        platform=order.platform,
        created_at_unix_s=time.time(),
        tsc_khz=tsc_khz,
        envd_version=__version__,
    )


def _finish(aside: Path, final: Path, manifest: Manifest) -> None:
    """Give the files to root, read-only for the VMMs that map them, put them on disk, and then in their place."""
    for name in (manifest.disk, manifest.memory, manifest.state):
        os.chown(aside / name, os.geteuid(), os.getegid())
        (aside / name).chmod(0o444)
    (aside / "manifest.json").write_text(json.dumps(manifest.to_json(), indent=2) + "\n")
    for path in (*sorted(aside.iterdir()), aside):
        _fsync(path)
    if final.exists():  # without a manifest: not a base
        shutil.rmtree(final)
    aside.rename(final)
    _fsync(final.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold the lock file against other agents; flock(2) locks end with their holder."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
