"""A host of fakes: every place where the real parts wait is a named point at which a test can fail or stop."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5

import numpy as np

from wrenn_sandbox.core.artefacts import ArtefactSet, Manifest, Platform
from wrenn_sandbox.core.errors import NotFound
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import Action
from wrenn_sandbox.core.placement import Rules
from wrenn_sandbox.core.slots import slot
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, Lifetime, NetworkPolicy, SandboxSpec, Shape
from wrenn_sandbox.disk.store import BuildStore
from wrenn_sandbox.hostagent.builds import Builds, Kept
from wrenn_sandbox.hostagent.capacity import Capacity, HostFigures
from wrenn_sandbox.hostagent.host import Base, Host
from wrenn_sandbox.hostagent.inbox import Operation
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.sandbox import Sandbox
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.vmm import ram as guest_memory
from wrenn_sandbox.vmm.driver import Capabilities, Exit, MachineSpec, Ram

ARTEFACTS = ArtefactSet("runtime", "kernel", "6.1", "initramfs", "tools", "rootfs")
PLATFORM = Platform("fake", "none", "machine", "cpu", "")
ROOMY = HostFigures(64_000, 60_000, 500_000, 400_000)
FOR_EVER = Lifetime(idle_timeout_s=0)
CAPABILITIES = Capabilities("fake", "none", False, 8, 8192)


class Boom(Exception):
    """What a point raises when a test says so."""


@dataclass
class Script:
    """What happens at the points; ``passed`` lists them in order."""

    fail_at: str = ""
    hang_at: str = ""
    passed: list[str] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    error: Callable[[], Exception] = Boom

    async def point(self, name: str) -> None:
        self.passed.append(name)
        await asyncio.sleep(0)
        if name == self.fail_at:
            raise self.error()
        if name == self.hang_at:
            self.reached.set()
            await asyncio.Event().wait()


class FakeMachine:
    """Its memory is real: a private mapping in this very process, so that captures find what was written there."""

    def __init__(self, script: Script, spec: MachineSpec | None = None) -> None:
        self.script = script
        self.pid = 2**22 + 1  # above the largest pid_max: nobody's
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.running = True
        self.stalled = ""
        self.disk = spec.files.disk.stat().st_ino if spec is not None else 0
        self.memory: mmap.mmap | None = None
        if spec is not None:
            with spec.files.memory.open("rb") as file:
                self.memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            guest_memory.apply(self.ram, spec.files.patches)

    @property
    def ram(self) -> Ram:
        assert self.memory is not None
        address = np.frombuffer(self.memory, dtype=np.uint8).ctypes.data
        return Ram(os.getpid(), address, len(self.memory))

    async def pause(self) -> None:
        await self.script.point("machine.pause")
        self.running = False

    async def resume(self) -> None:
        await self.script.point("machine.resume")
        self.running = True

    async def snapshot(self, state: Path, overlay: Path | None = None) -> None:
        self.running = False
        await self.script.point("machine.snapshot")
        state.write_text("state")
        if overlay is not None:
            self.disk = overlay.stat().st_ino

    async def writes_to(self, overlay: Path) -> bool:
        await self.script.point("machine.writes_to")
        return overlay.exists() and overlay.stat().st_ino == self.disk

    async def wait(self) -> Exit:
        return await asyncio.shield(self.exit)

    def die(self) -> None:
        self.exit.set_result(Exit(-9, "it was killed"))


@dataclass
class FakeGuest:
    script: Script
    identities: list[object] = field(default_factory=list)
    known_tokens: list[str] = field(default_factory=list)

    async def initialise(self, identity: object, *, limit_s: float, known_token: str = "") -> None:
        await self.script.point("guest.init")
        self.identities.append(identity)
        self.known_tokens.append(known_token)

    async def healthy(self, *, limit_s: float) -> None:
        await self.script.point("guest.healthy")

    async def prepare_snapshot(self, *, limit_s: float) -> None:
        await self.script.point("guest.prepare")


@dataclass
class FakeWorld:
    """Counts what is held; ``held`` has no count when nothing is."""

    root: Path
    script: Script = field(default_factory=Script)
    held: Counter[str] = field(default_factory=Counter)
    machines: list[FakeMachine] = field(default_factory=list)
    specs: list[MachineSpec] = field(default_factory=list)
    guests: list[FakeGuest] = field(default_factory=list)
    figures: HostFigures = ROOMY
    capabilities: Capabilities = CAPABILITIES
    next_slot: int = 1
    reserved: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        (self.root / "run").mkdir(exist_ok=True)
        (self.root / "images").mkdir(exist_ok=True)
        self.starts = asyncio.Semaphore(2)
        self.catalog = Catalog(self.root / "images")
        self.capacity = Capacity(Rules(), lambda: self.figures)
        rootfs = self.catalog.rootfs(ARTEFACTS.rootfs)
        rootfs.parent.mkdir(parents=True, exist_ok=True)
        rootfs.touch()
        self.store = BuildStore(self.root / "data", self.catalog)
        self.builds = Builds(self.store, self)

    @asynccontextmanager
    async def _hold(self, what: str) -> AsyncIterator[None]:
        await self.script.point(f"{what}.enter")
        self.held[what] += 1
        try:
            yield
        finally:
            await asyncio.sleep(0)
            self.held[what] -= 1

    def platform(self, kernel_cmdline: str) -> Platform:
        return PLATFORM

    def tsc_khz(self) -> int:
        return 0

    @asynccontextmanager
    async def link(self, policy: NetworkPolicy) -> AsyncIterator[object]:
        async with self._hold("link"):
            self.next_slot += 1
            yield SimpleNamespace(slot=slot(self.next_slot), tap_fd=None)

    def adopt(self, what: int | MachineSpec, with_: object) -> object:
        """Of the network: a slot's number and a policy; of the driver: a spec and a pid."""
        return self._adopted_link(what) if isinstance(what, int) else self._adopted_machine(what)

    @asynccontextmanager
    async def _adopted_link(self, number: int) -> AsyncIterator[object]:
        async with self._hold("link"):
            self.reserved.discard(number)
            yield SimpleNamespace(slot=slot(number), tap_fd=None)

    @asynccontextmanager
    async def _adopted_machine(self, spec: MachineSpec) -> AsyncIterator[FakeMachine]:
        if self.machines[-1].exit.done():
            raise NotFound("dead", slug="vmm_gone")
        async with self._hold("machine"):
            self.specs.append(spec)
            self.machines[-1].script = self.script
            yield self.machines[-1]

    async def sweep(self) -> int:
        return 0

    def reserve(self, numbers: Iterable[int]) -> None:
        self.reserved.update(numbers)

    async def give_up(self, number: int) -> None:
        self.reserved.discard(number)

    @asynccontextmanager
    async def restore(self, spec: MachineSpec, state: Path) -> AsyncIterator[FakeMachine]:
        assert spec.files.disk.exists()
        self.specs.append(spec)
        async with self._hold("machine"):
            self.machines.append(FakeMachine(self.script, spec))
            yield self.machines[-1]

    @asynccontextmanager
    async def boot(self, spec: MachineSpec) -> AsyncIterator[FakeMachine]:
        spec.files.memory.write_text("memory")
        self.specs.append(spec)
        async with self._hold("machine"):
            self.machines.append(FakeMachine(self.script))
            yield self.machines[-1]

    @asynccontextmanager
    async def open_guest(self, host_ip: str, access_token: str) -> AsyncIterator[FakeGuest]:
        async with self._hold("guest"):
            self.guests.append(FakeGuest(self.script))
            yield self.guests[-1]

    async def ready(self, shape: Shape, tell: Callable[[str], None]) -> Base:
        tell("preparing")
        await self.script.point("template")
        tell("")
        return base(self.root, shape)

    def make_overlay(self, overlay: Path, backing: Path, backing_format: str) -> None:
        overlay.write_text(f"{backing_format}:{backing}")

    def host(self) -> Host:
        parts = {"driver": self, "network": self, "templates": self}
        return Host(
            **parts,
            catalog=self.catalog,
            capacity=self.capacity,
            builds=self.builds,
            make_overlay=self.make_overlay,
            open_guest=self.open_guest,
            run_root=self.root / "run",
            starts=self.starts,
        )

    def assert_nothing_left(self, builds: int = 0) -> None:
        assert not +self.held and not self.reserved
        assert len(list((self.root / "data" / "builds").iterdir())) == builds
        assert list((self.root / "run").iterdir()) == []
        assert self.capacity.room().sandboxes == 0
        assert self.starts._value == 2


def base(root: Path, shape: Shape = DEFAULT_SHAPE) -> Base:
    """A base template that is there, with a sparse RAM file."""
    directory = root / "images" / "bases" / shape.slug
    manifest = Manifest(str(uuid5(NAMESPACE_OID, shape.slug)), "base", shape, ARTEFACTS, PLATFORM, 0.0)
    if not directory.exists():
        directory.mkdir(parents=True)
        with (directory / "memory").open("wb") as file:
            file.truncate(shape.memory_mib << 20)
        (directory / "state").write_text("state")
        (directory / "disk.qcow2").write_text("disk")
        (directory / "manifest.json").write_text(json.dumps(manifest.to_json()))
    return Base(directory, manifest)


def request(lifetime: Lifetime = FOR_EVER, build_id: UUID | None = None) -> Request:
    spec = SandboxSpec("base", DEFAULT_SHAPE, lifetime, access_token="t" * 32)
    return Request(SandboxId(uuid4()), spec, "00000000-0000-0000-0000-000000000000", build_id)


@asynccontextmanager
async def running(world: FakeWorld, wanted: Request | None = None) -> AsyncIterator[Sandbox]:
    """A sandbox that runs; destroyed afterwards, if that is still needed."""
    sandbox = Sandbox(wanted or request(), world.host())
    world.builds.claims = lambda: sandbox.claims
    async with asyncio.TaskGroup() as group:
        group.create_task(sandbox.run())
        await sandbox.started()
        try:
            yield sandbox
        finally:
            sandbox.stop()


async def kept(sandbox: Sandbox, action: Action, build_id: UUID | None = None, *holders: str) -> Kept:
    """Ask for an operation and wait for its answer."""
    return await sandbox.ask(Operation(action, build_id or uuid4(), holders)).settled()


def poke(world: FakeWorld, page: int, content: bytes) -> None:
    """Write into the memory of the newest machine."""
    memory = world.machines[-1].memory
    assert memory is not None
    memory[page * 4096 : page * 4096 + len(content)] = content


def memory_of(world: FakeWorld, build_id: UUID, page: int, length: int) -> bytes:
    """What a build has there."""
    with world.store.get(build_id).source() as source:
        return source.read(page * 4096, length)


async def abandoned(world: FakeWorld, sandbox: Sandbox) -> Path:
    """The directory that a killed agent leaves of a sandbox: a copy, since the living one is removed at its end."""
    directory = world.root / "run" / str(sandbox.request.id)
    left = world.root / "left"
    shutil.copytree(directory, left)
    (left / "vmm").mkdir()
    (left / "vmm" / "vmm.json").write_text(json.dumps({"pid": world.machines[-1].pid, "start_ticks": 1}))
    machine = world.machines[-1]
    tops = [path for path in directory.glob("disk*.qcow2") if path.stat().st_ino == machine.disk]
    machine.disk = (left / tops[0].name).stat().st_ino
    sandbox.stop()
    await sandbox.ended()
    left.rename(directory)
    return directory
