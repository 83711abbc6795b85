"""A guest that is booted once, changed at will, frozen, and then restored again and again, without API or agent."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tests.running import IMAGES_DIR
from wrenn_sandbox.core.artefacts import Platform
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, NetworkPolicy
from wrenn_sandbox.disk import overlay
from wrenn_sandbox.hostagent.guest import Guest, Identity
from wrenn_sandbox.hostagent.guest_processes import Command
from wrenn_sandbox.hostagent.platforms import open_guest
from wrenn_sandbox.hostagent.templates import KERNEL_CMDLINE
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.net.network import Link
from wrenn_sandbox.net.pool import NamespacePool, PoolOptions
from wrenn_sandbox.vmm.driver import MachineFiles, MachineSpec
from wrenn_sandbox.vmm.qemu.cpu import TCG_MODEL
from wrenn_sandbox.vmm.qemu.driver import QemuDriver

TOKEN = "of-this-test"
#: Of the names of namespaces and links.
TAG = "wtr"
Change = Callable[[Guest], Awaitable[None]]


@dataclass(frozen=True)
class Frozen:
    """A snapshot: the files of one directory, and the platform it was made on."""

    directory: Path
    platform: Platform
    driver: QemuDriver

    @asynccontextmanager
    async def restored(self, **duties: bool) -> AsyncIterator[Guest]:
        """A guest restored from it, initialised; ``duties`` switch single ones off (``reseed``, ``clockStep``)."""
        async with AsyncExitStack() as stack:
            link, spec = await stack.enter_async_context(
                _prepared(self.driver, self.platform, self.directory, boot=False)
            )
            await stack.enter_async_context(self.driver.restore(spec, self.directory / "state"))
            guest = await stack.enter_async_context(open_guest(link.slot.host_ip, TOKEN))
            await guest.initialise(Partly(_identity(), duties), limit_s=60)  # type: ignore[arg-type]
            yield guest


async def frozen(directory: Path, *changes: Change) -> list[Frozen]:
    """Boot a guest, let each of ``changes`` do what it wants in it, and freeze it after each, below ``directory``."""
    driver = QemuDriver("tcg", TCG_MODEL)
    platform = driver.platform(KERNEL_CMDLINE)
    made: list[Frozen] = []
    async with AsyncExitStack() as stack:
        link, spec = await stack.enter_async_context(_prepared(driver, platform, directory, boot=True))
        machine = await stack.enter_async_context(driver.boot(spec))
        async with open_guest(link.slot.host_ip, "") as guest:
            await guest.healthy(limit_s=240)
        guest = await stack.enter_async_context(open_guest(link.slot.host_ip, TOKEN))
        for change in changes:
            await guest.initialise(_identity(), limit_s=60, known_token=TOKEN if made else "")
            await change(guest)
            await guest.prepare_snapshot(limit_s=30)
            await machine.pause()
            made.append(Frozen(directory / str(len(made)), platform, driver))
            made[-1].directory.mkdir(mode=0o755)
            await machine.snapshot(made[-1].directory / "state")
            _copy(directory, made[-1].directory)
            await machine.resume()
    return made


def _copy(source: Path, target: Path) -> None:
    for name in ("memory", "disk.qcow2"):
        subprocess.run(["cp", "--sparse=always", str(source / name), str(target / name)], check=True)
    for path in target.iterdir():
        os.chown(path, 0, 0)
        path.chmod(0o444)


async def output(guest: Guest, *words: str, user: str = "root") -> bytes:
    """What a program in the guest prints; it must succeed."""
    collected = bytearray()
    async with asyncio.timeout(120), guest.processes.start(Command(words[0], words[1:], user=user)) as events:
        async for event in events:
            if event.event is None:
                continue
            if event.event.field == "data" and event.event.value.output is not None:
                collected += event.event.value.output.value
            if event.event.field == "end":
                assert event.event.value.exit_code == 0, (words, bytes(collected), event.event.value.error)
    return bytes(collected)


@dataclass(frozen=True)
class Partly:
    """An identity with some duties switched off."""

    identity: Identity
    duties: dict[str, bool]

    def to_json(self) -> dict[str, object]:
        body = self.identity.to_json() | self.duties
        if body.get("reseed") is False:
            del body["entropy"]
        return body


def _identity() -> Identity:
    made = SandboxId(uuid4())
    return Identity(
        sandbox_id=str(made),
        template_id="",
        access_token=TOKEN,
        machine_id=made.value.hex,
        entropy=secrets.token_bytes(64),
        timestamp_unix_s=time.time(),
        envs={},
        default_user="",
        default_workdir="",
    )


@asynccontextmanager
async def _prepared(
    driver: QemuDriver, platform: Platform, directory: Path, *, boot: bool
) -> AsyncIterator[tuple[Link, MachineSpec]]:
    catalog, artefacts = Catalog(IMAGES_DIR), Catalog(IMAGES_DIR).current()
    rootfs = catalog.rootfs(artefacts.rootfs)
    async with AsyncExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="wrenn-restore-"))
        stack.callback(shutil.rmtree, scratch)
        pool = await stack.enter_async_context(NamespacePool(PoolOptions(tag=TAG, warm=1)))
        link = await stack.enter_async_context(pool.link(NetworkPolicy()))
        base = directory / "disk.qcow2"
        disk = base if boot else scratch / "disk.qcow2"
        overlay.create(disk, rootfs if boot else base, "raw" if boot else "qcow2")
        files = MachineFiles(
            runtime=catalog.runtime(artefacts.runtime),
            kernel=catalog.kernel(artefacts.kernel),
            initramfs=catalog.initramfs(artefacts.initramfs),
            tools=catalog.tools(artefacts.tools),
            disk=disk,
            backing=(rootfs,) if boot else (base, rootfs),
            memory=directory / "memory",
        )
        slot = link.slot
        yield (
            link,
            MachineSpec(
                name="restore",
                shape=DEFAULT_SHAPE,
                platform=platform,
                files=files,
                run_dir=scratch / "vmm",
                uid=slot.uid,
                gid=slot.gid,
                tap_fd=link.tap_fd,
                host_ip=slot.host_ip,
            ),
        )
