"""Boot the real kernel under an accelerator, in the real jail, and believe only what the guest itself writes.

The guest is the sandboxes' own kernel and initramfs with another first program: it prints a sum that only running code
can know, and reboots, which ends it. A CPU model that KVM cannot give makes QEMU refuse at once, and the next one is
tried; a guest that hangs says that KVM does not work, whatever the model.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.slots import FIRST_VMM_UID
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.disk import overlay
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.image.initramfs import archive
from wrenn_sandbox.vmm import probe
from wrenn_sandbox.vmm.driver import MachineFiles, MachineSpec
from wrenn_sandbox.vmm.probe import Attempt, Fallback, Verdict, Wanted
from wrenn_sandbox.vmm.qemu import cpu
from wrenn_sandbox.vmm.qemu.driver import QemuDriver
from wrenn_sandbox.vmm.qemu.machine import QemuMachine

BOOT_LIMIT_S = 10.0
MARKER = "wrenn-guest-42-runs"
_FIRST_PROGRAM = b"""#!/bin/busybox sh
/bin/busybox echo "wrenn-guest-$((6 * 7))-runs"
/bin/busybox reboot -f
"""
_NAME = "wrenn-trial"
_SHAPE = Shape(vcpus=1, memory_mib=256)
_DISK_BYTES = 1 << 20
_LOOK_EVERY_S = 0.05
_UID = FIRST_VMM_UID  # slot 0, which no sandbox has


async def choose(catalog: Catalog, cache: Path, wanted: Wanted = Wanted.AUTO) -> Verdict:
    """The accelerator and CPU model for new templates on this host; see ``probe.choose``."""
    artefacts = catalog.current()
    key = probe.host_key((artefacts.runtime, artefacts.kernel, artefacts.initramfs))
    fallback = Fallback("tcg", cpu.TCG_MODEL)
    return await probe.choose(wanted, lambda: kvm_attempts(catalog, artefacts), fallback, cache, key)


async def kvm_attempts(catalog: Catalog, artefacts: ArtefactSet) -> AsyncIterator[Attempt]:
    """One attempt for each CPU model worth trying, until a guest boots or hangs; none without /dev/kvm."""
    if not probe.KVM_DEVICE.exists():
        return
    for model in cpu.models(Path("/proc/cpuinfo").read_text()):
        attempt = await attempted(catalog, artefacts, "kvm", model)
        yield attempt
        if attempt.booted or attempt.duration_s >= BOOT_LIMIT_S:
            return


async def attempted(
    catalog: Catalog, artefacts: ArtefactSet, accelerator: str, model: str, limit_s: float = BOOT_LIMIT_S
) -> Attempt:
    """Boot the trial guest once."""
    begin = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix=f"{_NAME}-"))
    booted, reason = False, f"The guest wrote nothing within {limit_s:g} s: it hangs."
    try:
        driver = QemuDriver(accelerator, model)
        spec = _spec(scratch, catalog, artefacts, driver)
        async with asyncio.timeout(limit_s), driver.boot(spec) as machine:
            reason = await _outcome(machine)
            booted = reason == ""
    except TimeoutError:
        pass
    except Unavailable as error:
        reason = error.message
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Attempt(accelerator, model, booted, reason, round(time.monotonic() - begin, 3))


async def _outcome(machine: QemuMachine) -> str:
    """Empty when the guest ran, else why not."""
    while MARKER not in machine.console:
        try:
            async with asyncio.timeout(_LOOK_EVERY_S):
                ended = await machine.wait()
        except TimeoutError:
            continue
        return "" if MARKER in machine.console else ended.reason
    return ""


def _spec(scratch: Path, catalog: Catalog, artefacts: ArtefactSet, driver: QemuDriver) -> MachineSpec:
    initramfs = scratch / "initramfs"
    # The kernel unpacks archives one after another, each beginning at a multiple of four.
    packed = catalog.initramfs(artefacts.initramfs).read_bytes()
    initramfs.write_bytes(packed + b"\0" * (-len(packed) % 4) + archive({"wrenn-trial": _FIRST_PROGRAM}))
    empty = scratch / "empty.raw"
    empty.write_bytes(b"\0" * _DISK_BYTES)
    overlay.create(scratch / "disk.qcow2", empty, "raw")
    return MachineSpec(
        name=_NAME,
        shape=_SHAPE,
        platform=driver.platform("rdinit=/wrenn-trial"),
        files=MachineFiles(
            runtime=catalog.runtime(artefacts.runtime),
            kernel=catalog.kernel(artefacts.kernel),
            initramfs=initramfs,
            tools=empty,
            disk=scratch / "disk.qcow2",
            backing=(empty,),
            memory=scratch / "memory",
        ),
        run_dir=scratch / "vmm",
        uid=_UID,
        gid=_UID,
        tap_fd=None,
        host_ip="",
    )
