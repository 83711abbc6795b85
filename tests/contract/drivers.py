"""What the driver suite needs of each driver: a guest that ticks, and a base to restore from."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from wrenn_sandbox.core.slots import LAST_SLOT, slot
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.disk import overlay
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.image.initramfs import archive
from wrenn_sandbox.vmm.driver import Driver, Machine, MachineFiles, MachineSpec
from wrenn_sandbox.vmm.fake import FakeDriver
from wrenn_sandbox.vmm.keeper import descendants
from wrenn_sandbox.vmm.qemu.driver import QemuDriver

IMAGES = Path(os.environ.get("WRENN_IMAGES_DIR", "/var/lib/wrenn/images"))
SHAPE = Shape(vcpus=1, memory_mib=256)
PATIENCE_S = 90.0
NAME = f"contract-{os.getpid()}"
_SLOTS = itertools.count(LAST_SLOT - 1, -1)

#: Counts in memory and on its disk, where a restored machine must go on; answers pings when it has a network.
TICKING_GUEST = b"""#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t devtmpfs dev /dev
while read -r module; do $B insmod "/modules/$module" 2>/dev/null; done </modules/order
while [ ! -b /dev/vda ] || [ ! -b /dev/vdb ]; do $B usleep 10000; done
$B ip link set lo up
if $B ip addr add 169.254.0.21/30 dev eth0 2>/dev/null; then $B ip link set eth0 up; fi
n=0
while :; do
    n=$((n + 1))
    echo "tick $n disk $($B head -c 8 /dev/vda) tools $($B head -c 5 /dev/vdb)"
    $B printf '%08d' $n >/dev/vda
    $B sync
    $B usleep 50000
done
"""

#: The same for the fake: prints, serves, and leaves a double-forked process behind as real programs do.
TICKING_PROCESS = """
import os, socket, sys, time
server = socket.create_server((sys.argv[1], 49983))
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "1000"])
    os._exit(0)
os.wait()
n = 0
while True:
    n += 1
    print("tick", n, flush=True)
    time.sleep(0.02)
"""


class Ticking(Machine, Protocol):
    """A machine of either driver."""

    @property
    def console(self) -> str: ...


def ticks(machine: Ticking) -> int:
    """The number of the last whole tick."""
    lines = [line for line in machine.console.split("\n")[:-1] if line.startswith("tick ")]
    return int(lines[-1].split()[1]) if lines else 0


async def ticking(machine: Ticking, more: int = 2) -> int:
    """Wait until the guest has ticked ``more`` times from now."""
    goal = ticks(machine) + more
    async with asyncio.timeout(PATIENCE_S):
        while ticks(machine) < goal:
            await asyncio.sleep(0.02)
    return ticks(machine)


@dataclass(frozen=True)
class Base:
    """What every restore starts from."""

    spec: MachineSpec
    state: Path


class Bench:
    """One driver with a directory to work in."""

    def __init__(self, directory: Path, driver: Driver, files: Callable[[Path], MachineFiles], cmdline: str) -> None:
        self.directory = directory
        self.driver = driver
        self.base: Base | None = None
        self._files = files
        self._cmdline = cmdline
        self._names = itertools.count()

    def new_spec(self) -> MachineSpec:
        """A machine to be booted, on a new disk."""
        number = next(self._names)
        place = self.directory / f"m{number}"
        place.mkdir()
        files = self._files(place)
        overlay.create(files.disk, files.backing[0], "raw")
        seat = slot(next(_SLOTS))
        uid, gid = (seat.uid, seat.gid) if os.geteuid() == 0 else (os.getuid(), os.getgid())
        return MachineSpec(
            name=f"{NAME}-{number}",
            shape=SHAPE,
            platform=self.driver.platform(self._cmdline),
            files=files,
            run_dir=place / "vmm",
            uid=uid,
            gid=gid,
            tap_fd=None,
            host_ip=f"127.77.{number // 250}.{number % 250 + 1}",
        )

    async def baked(self) -> Base:
        """The base, booted once and then kept."""
        if self.base is None:
            spec = self.new_spec()
            async with self.boot(spec) as machine:
                await ticking(machine)
                await machine.snapshot(spec.files.memory.with_name("state"))
            self.base = Base(spec, spec.files.memory.with_name("state"))
        return self.base

    async def restore_spec(self) -> MachineSpec:
        """A machine to be restored from the base, on an overlay of its own."""
        base = (await self.baked()).spec.files
        spec = self.new_spec()
        spec.files.disk.unlink()
        overlay.create(spec.files.disk, base.disk, "qcow2")
        return replace(spec, files=replace(spec.files, memory=base.memory, backing=(base.disk, *base.backing)))

    def boot(self, spec: MachineSpec) -> AbstractAsyncContextManager[Ticking]:
        return self.driver.boot(spec)  # type: ignore[return-value]

    @asynccontextmanager
    async def restored(self) -> AsyncIterator[Ticking]:
        """A ticking machine, restored from the base."""
        spec = await self.restore_spec()
        async with self.driver.restore(spec, (await self.baked()).state) as machine:
            yield machine  # type: ignore[misc]


def traces() -> frozenset[str]:
    """Our processes (zombies too), descriptors and mounts; other users of this machine do not count."""
    below = {f"process {pid}" for pid in descendants(os.getpid())}
    strays = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if NAME.encode() in command or TICKING_PROCESS.encode() in command:
                strays.add(f"process {entry.name}")
    descriptors = {
        f"descriptor {fd.name} {target}" for fd in Path("/proc/self/fd").iterdir() if (target := _target(fd))
    }
    mounts = {f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return frozenset(below | strays | descriptors | {mount for mount in mounts if NAME in mount or "pytest" in mount})


def _target(fd: Path) -> str:
    try:
        target = str(fd.readlink())
    except OSError:
        return ""
    return "" if target.startswith("/proc/") else target


def ticking_process(spec: MachineSpec) -> Sequence[str]:
    """Plays the guest of the fake."""
    return (sys.executable, "-c", TICKING_PROCESS, spec.host_ip)


def fake_bench(directory: Path) -> Bench:
    """The fake VMM over a stand-in for envd."""
    raw = _raw(directory)

    def files(place: Path) -> MachineFiles:
        return MachineFiles(raw, raw, raw, raw, place / "disk.qcow2", (raw,), place / "memory")

    return Bench(directory, FakeDriver(ticking_process), files, "")


def qemu_bench(directory: Path) -> Bench:
    """QEMU under TCG with the real runtime, kernel and initramfs, whose first program is ours."""
    catalog = Catalog(IMAGES)
    artefacts = catalog.current()
    raw = _raw(directory)
    packed = catalog.initramfs(artefacts.initramfs).read_bytes()
    initramfs = directory / "initramfs"
    initramfs.write_bytes(packed + b"\0" * (-len(packed) % 4) + archive({"ticking": TICKING_GUEST}))

    def files(place: Path) -> MachineFiles:
        return MachineFiles(
            runtime=catalog.runtime(artefacts.runtime),
            kernel=catalog.kernel(artefacts.kernel),
            initramfs=initramfs,
            tools=raw,
            disk=place / "disk.qcow2",
            backing=(raw,),
            memory=place / "memory",
        )

    return Bench(directory, QemuDriver("tcg", "max"), files, "rdinit=/ticking")


def _raw(directory: Path) -> Path:
    raw = directory / "bottom.raw"
    raw.write_bytes(b"bottom--" + b"\0" * ((8 << 20) - 8))
    return raw
