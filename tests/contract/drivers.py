"""What the driver suite needs of each driver: a guest that ticks, and a base to restore from."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol
from unittest.mock import patch

import numpy as np

from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.core.slots import LAST_SLOT, slot
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.disk import overlay
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.image.initramfs import archive
from wrenn_sandbox.vmm import ram
from wrenn_sandbox.vmm.driver import Driver, Machine, MachineFiles, MachineSpec, Patch
from wrenn_sandbox.vmm.fake import FakeDriver
from wrenn_sandbox.vmm.keeper import descendants
from wrenn_sandbox.vmm.qemu.driver import QemuDriver
from wrenn_sandbox.vmm.qemu.qmp import Monitor

IMAGES = Path(os.environ.get("WRENN_IMAGES_DIR", "/var/lib/wrenn/images"))
SHAPE = Shape(vcpus=1, memory_mib=256)
PATIENCE_S = 90.0
Action = Callable[[], Awaitable[None]]
NAME = f"contract-{os.getpid()}"
_SLOTS = itertools.count(LAST_SLOT - 1, -1)

#: Counts in memory and on its disk, where a restored machine must go on, and leaves block n of the disk as a trail of
#: tick n, which is there before tick n + 1 is told; answers pings when it has a network.
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
    $B printf '%08d' $n | $B dd of=/dev/vda bs=4096 seek=$n conv=notrunc 2>/dev/null
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


@dataclass(frozen=True)
class Moment:
    """A snapshot of a restored machine: ``layers`` of its disk, nearest first, and the pages that were its own."""

    state: Path
    layers: tuple[Path, ...]
    patches: tuple[Patch, ...]


#: A page that the ticking guests leave alone: above what its kernel is told of (mem=), and nobody's in the fake.
FREE_PAGE = (SHAPE.memory_mib - 8) * 256


def poke(machine: Machine, text: bytes, page: int = FREE_PAGE) -> None:
    """Write a page of the guest's memory from outside."""
    content = np.frombuffer(text.ljust(PAGE, b"."), dtype=np.uint8).reshape(1, PAGE)
    ram.write_from(machine.ram, np.array([page]), content)


def peek(machine: Machine, page: int = FREE_PAGE) -> bytes:
    """What ``poke`` wrote."""
    content = np.empty((1, PAGE), dtype=np.uint8)
    ram.read_into(machine.ram, np.array([page]), content)
    return content.tobytes().rstrip(b".")


def own_pages(machine: Machine, target: Path) -> tuple[Patch, ...]:
    """The pages that the machine does not share with its base, kept in the new file ``target``."""
    pages = ram.private_pages(machine.ram)
    content = np.empty((len(pages), PAGE), dtype=np.uint8)
    ram.read_into(machine.ram, pages, content)
    with target.open("xb") as file:
        file.write(content.data)
    return tuple(Patch(int(page) * PAGE, PAGE, target, n * PAGE) for n, page in enumerate(pages))


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
        base = await self.baked()
        return await self.spec_from(Moment(base.state, (base.spec.files.disk, *base.spec.files.backing), ()))

    async def spec_from(self, moment: Moment) -> MachineSpec:
        """A machine to be restored from ``moment``, on an overlay of its own."""
        memory = (await self.baked()).spec.files.memory
        spec = self.new_spec()
        spec.files.disk.unlink()
        overlay.create(spec.files.disk, moment.layers[0], "qcow2")
        files = replace(spec.files, memory=memory, backing=moment.layers, patches=moment.patches)
        return replace(spec, files=files)

    async def taken(self, machine: Machine, layers: Sequence[Path], above: Path) -> Moment:
        """A snapshot that lets the machine, stopped now, go on above ``layers`` on the new overlay ``above``."""
        overlay.create(above, layers[0], "qcow2")
        state = above.with_suffix(".state")
        await machine.snapshot(state, above)
        return Moment(state, tuple(layers), own_pages(machine, above.with_suffix(".pages")))

    def failing(self, step: str, action: Action) -> AbstractContextManager[None]:
        """``action`` is awaited before every ``step`` (its names are the fake's) of any machine."""
        raise NotImplementedError

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


class FakeBench(Bench):
    """The fake VMM over a stand-in for envd."""

    def __init__(self, directory: Path) -> None:
        raw = _raw(directory)

        def files(place: Path) -> MachineFiles:
            return MachineFiles(raw, raw, raw, raw, place / "disk.qcow2", (raw,), place / "memory")

        super().__init__(directory, FakeDriver(ticking_process, faults=self._step), files, "")
        self._actions: dict[str, Action] = {}

    @contextmanager
    def failing(self, step: str, action: Action) -> Iterator[None]:
        self._actions[step] = action
        try:
            yield
        finally:
            del self._actions[step]

    async def _step(self, name: str) -> None:
        if name in self._actions:
            await self._actions[name]()


class QemuBench(Bench):
    """QEMU, with the commands that are its steps."""

    _COMMANDS: ClassVar[dict[str, str]] = {
        "load": "migrate-incoming",
        "pause": "stop",
        "state": "xen-save-devices-state",
        "overlay": "blockdev-snapshot",
        "settle": "remove-fd",
        "resume": "cont",
        "adopt": "query-block",
    }

    @contextmanager
    def failing(self, step: str, action: Action) -> Iterator[None]:
        real = Monitor.execute

        async def execute(monitor: Monitor, command: str, **arguments: object) -> object:
            if command == self._COMMANDS[step]:
                await action()
            return await real(monitor, command, **arguments)

        with patch.object(Monitor, "execute", execute):
            yield


def fake_bench(directory: Path) -> Bench:
    """The fake, which never goes on where it was: its guest starts anew beside its old memory."""
    return FakeBench(directory)


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

    return QemuBench(directory, QemuDriver("tcg", "max"), files, f"rdinit=/ticking mem={SHAPE.memory_mib - 16}M")


def _raw(directory: Path) -> Path:
    raw = directory / "bottom.raw"
    raw.write_bytes(b"bottom--" + b"\0" * ((8 << 20) - 8))
    return raw
