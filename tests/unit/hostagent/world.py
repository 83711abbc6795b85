"""A host of fakes: every place where the real parts wait is a named point at which a test can fail or stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

from wrenn_sandbox.core.artefacts import ArtefactSet, Manifest, Platform
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.placement import Rules
from wrenn_sandbox.core.slots import slot
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, Lifetime, NetworkPolicy, SandboxSpec, Shape
from wrenn_sandbox.hostagent.capacity import Capacity, HostFigures
from wrenn_sandbox.hostagent.host import Base, Host
from wrenn_sandbox.hostagent.steps.create import Request
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.vmm.driver import Capabilities, Exit, MachineSpec

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
    def __init__(self, script: Script) -> None:
        self.script = script
        self.pid = 2**22 + 1  # above the largest pid_max: nobody's
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def pause(self) -> None:
        await self.script.point("machine.pause")

    async def resume(self) -> None:
        await self.script.point("machine.resume")

    async def snapshot(self, state: Path) -> None:
        await self.script.point("machine.snapshot")
        state.write_text("state")

    async def wait(self) -> Exit:
        return await asyncio.shield(self.exit)

    def die(self) -> None:
        self.exit.set_result(Exit(-9, "it was killed"))


@dataclass
class FakeGuest:
    script: Script
    identities: list[object] = field(default_factory=list)

    async def initialise(self, identity: object, *, limit_s: float) -> None:
        await self.script.point("guest.init")
        self.identities.append(identity)

    async def healthy(self, *, limit_s: float) -> None:
        await self.script.point("guest.healthy")

    async def prepare_snapshot(self, *, limit_s: float) -> None:
        await self.script.point("guest.prepare")


@dataclass
class FakeWorld:
    """Counts what is held; ``held`` is empty when nothing is."""

    root: Path
    script: Script = field(default_factory=Script)
    held: set[str] = field(default_factory=set)
    machines: list[FakeMachine] = field(default_factory=list)
    specs: list[MachineSpec] = field(default_factory=list)
    guests: list[FakeGuest] = field(default_factory=list)
    figures: HostFigures = ROOMY
    capabilities: Capabilities = CAPABILITIES
    next_slot: int = 1

    def __post_init__(self) -> None:
        (self.root / "run").mkdir(exist_ok=True)
        (self.root / "images").mkdir(exist_ok=True)
        self.starts = asyncio.Semaphore(2)
        self.catalog = Catalog(self.root / "images")
        self.capacity = Capacity(Rules(), lambda: self.figures)

    @asynccontextmanager
    async def _hold(self, what: str) -> AsyncIterator[None]:
        await self.script.point(f"{what}.enter")
        self.held.add(what)
        try:
            yield
        finally:
            await asyncio.sleep(0)
            self.held.discard(what)

    def platform(self, kernel_cmdline: str) -> Platform:
        return PLATFORM

    @asynccontextmanager
    async def link(self, policy: NetworkPolicy) -> AsyncIterator[object]:
        async with self._hold("link"):
            self.next_slot += 1
            yield SimpleNamespace(slot=slot(self.next_slot), tap_fd=None)

    async def sweep(self) -> int:
        return 0

    @asynccontextmanager
    async def restore(self, spec: MachineSpec, state: Path) -> AsyncIterator[FakeMachine]:
        assert spec.files.disk.exists()
        self.specs.append(spec)
        async with self._hold("machine"):
            self.machines.append(FakeMachine(self.script))
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
            make_overlay=self.make_overlay,
            open_guest=self.open_guest,
            run_root=self.root / "run",
            starts=self.starts,
        )

    def assert_nothing_left(self) -> None:
        assert self.held == set()
        assert list((self.root / "run").iterdir()) == []
        assert self.capacity.room().sandboxes == 0
        assert self.starts._value == 2


def base(root: Path, shape: Shape = DEFAULT_SHAPE) -> Base:
    return Base(root / "base", Manifest("bld-x", "base", shape, ARTEFACTS, PLATFORM, 0.0))


def request(lifetime: Lifetime = FOR_EVER) -> Request:
    spec = SandboxSpec("base", DEFAULT_SHAPE, lifetime, access_token="t" * 32)
    return Request(SandboxId(uuid4()), spec, "00000000-0000-0000-0000-000000000000")
