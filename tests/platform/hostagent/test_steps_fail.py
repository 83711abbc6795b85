"""Every step of every operation failed, repeated and cancelled, over the fake VMM with real processes and real builds.

A *point* is a place where the outside answers: the driver's steps, the network, the guest, the disk. An operation is
done once to learn its points; then once for each of them with that point failing, after which it is repeated and must
succeed, and once for each with that point hanging, while somebody destroys the sandbox. Nothing may be left and nothing
lost: a pattern in the machine's memory and a mark on its disk are found again.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.leaks import Footprint
from tests.platform.hostagent.conftest import TOKEN
from wrenn_sandbox.core.errors import Exhausted, Unavailable, WrennError
from wrenn_sandbox.core.ids import SandboxId, TemplateId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, Lifetime, NetworkPolicy, SandboxSpec
from wrenn_sandbox.disk import chain
from wrenn_sandbox.hostagent.agent import assemble
from wrenn_sandbox.hostagent.guest import Guest
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.moments import Moments
from wrenn_sandbox.hostagent.platforms import Platform
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.sandbox import Sandbox
from wrenn_sandbox.hostagent.settings import DriverChoice, Settings
from wrenn_sandbox.net.loopback import LoopbackNetwork
from wrenn_sandbox.vmm.fake import FakeDriver

pytestmark = pytest.mark.platform

PAGE = 4096
#: Where the pattern is, and how long it is: more than one piece of a capture.
FIRST_PAGE, PAGES = 77, 1200


@dataclass
class Script:
    """What happens at the points."""

    passed: list[str] = field(default_factory=list)
    fail_at: int | None = None
    hang_at: int | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    armed: bool = False

    def begin(self, *, fail_at: int | None = None, hang_at: int | None = None) -> None:
        self.passed, self.fail_at, self.hang_at, self.armed = [], fail_at, hang_at, True
        self.reached = asyncio.Event()

    def end(self) -> list[str]:
        self.armed = False
        return self.passed

    def step(self, name: str) -> None:
        """A point in a thread: it can fail and not hang."""
        if self.armed:
            self.passed.append(name)
            if len(self.passed) - 1 == self.fail_at:
                raise Exhausted(f"{name} failed", slug="host_disk_full")

    async def point(self, name: str) -> None:
        if self.armed:
            self.passed.append(name)
            if len(self.passed) - 1 == self.fail_at:
                raise Unavailable(f"{name} failed", slug="vmm_refused")
            if len(self.passed) - 1 == self.hang_at:
                self.reached.set()
                await asyncio.Event().wait()


@dataclass
class World:
    """An agent's inside, with points."""

    root: Path
    script: Script
    registry: Registry
    moments: Moments

    @property
    def host(self) -> Host:
        return self.registry.host

    async def create(self, build_id: UUID | None = None, sandbox_id: SandboxId | None = None) -> Sandbox:
        return await self.registry.create(wanted(build_id, sandbox_id))

    def left(self) -> dict[str, object]:
        """What a host holds that has no sandbox and no snapshot; empty when clean."""
        run, data = self.root / "run", self.root
        found: dict[str, object] = {
            "directories": [path.name for path in run.iterdir()],
            "builds": [path.name for path in (data / "builds").iterdir()],
            "holds": [path.name for path in (data / "holds").iterdir()],
            "pins": list(self.host.builds.store._pins),
            "reservations": list(self.host.capacity._held),
            "slots": self.host.network._in_use,
            "starts": 2 - self.host.starts._value,
            "sandboxes": [str(sandbox.request.id) for sandbox in self.registry.all()],
        }
        return {name: what for name, what in found.items() if what}


def wanted(build_id: UUID | None = None, sandbox_id: SandboxId | None = None) -> Request:
    spec = SandboxSpec("base", DEFAULT_SHAPE, Lifetime(idle_timeout_s=0), NetworkPolicy(), access_token="t" * 32)
    return Request(sandbox_id or SandboxId(uuid4()), spec, str(UUID(int=0)), build_id)


class PointedNetwork(LoopbackNetwork):
    """The fake network with a point."""

    script: Script

    def link(self, policy: NetworkPolicy) -> AbstractAsyncContextManager[object]:
        return self._pointed(policy)

    @asynccontextmanager
    async def _pointed(self, policy: NetworkPolicy) -> AsyncIterator[object]:
        await self.script.point("link")
        async with super().link(policy) as link:
            yield link


def pointed(host: Host, script: Script) -> Host:
    """The same host with points where it meets its guests and its disk."""
    store, make_overlay, open_guest = host.builds.store, host.make_overlay, host.open_guest
    for name in ("publish", "hold", "release", "held"):
        setattr(store, name, _stepped(getattr(store, name), name, script))

    def overlay(path: Path, backing: Path, backing_format: str) -> None:
        script.step("make_overlay")
        make_overlay(path, backing, backing_format)

    @asynccontextmanager
    async def guest(host_ip: str, access_token: str) -> AsyncIterator[Guest]:
        async with open_guest(host_ip, access_token) as opened:
            initialise = opened.initialise

            async def with_point(*args: object, **options: object) -> None:
                await script.point("init")
                await initialise(*args, **options)

            opened.initialise = with_point
            yield opened

    return replace(host, make_overlay=overlay, open_guest=guest)


def _stepped(work: Callable[..., object], name: str, script: Script) -> Callable[..., object]:
    def call(*args: object) -> object:
        script.step(name)
        return work(*args)

    return call


@pytest.fixture
def world(tmp_path: Path, images: Path, exec_shim: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    """Run a scene in a world, which must hold nothing at the end."""

    def run(scene: Callable[[World], Awaitable[None]]) -> None:
        with no_process_left():
            asyncio.run(_bounded(tmp_path, images, exec_shim, scene))

    return run


@contextmanager
def no_process_left() -> Iterator[None]:
    before = Footprint.take()
    yield
    left = Footprint.take().left_behind(before)
    assert {kind: names for kind, names in left.items() if kind in {"processes", "descriptors"}} == {}


async def _bounded(root: Path, images: Path, shim: Path, scene: Callable[[World], Awaitable[None]]) -> None:
    script = Script()
    (root / "token").write_text(TOKEN)
    (root / "run").mkdir()
    settings = Settings(
        data_dir=root, images_dir=images, driver=DriverChoice.FAKE, token_file=root / "token", parallel_starts=2,
        min_disk_mib=0, min_disk_fraction=0.0,
    )  # fmt: skip
    network = PointedNetwork("t")
    network.script = script
    platform = Platform(FakeDriver(shim=shim, faults=script.point), network)
    async with asyncio.timeout(280), asyncio.TaskGroup() as group:
        parts = assemble(settings, platform, TOKEN, group)
        working = group.create_task(parts.builds.work())
        registry = Registry(pointed(parts.registry.host, script), group)
        registry.open()
        here = World(root, script, registry, Moments(registry, group))
        await scene(here)
        script.end()
        for sandbox in registry.all():
            await registry.destroy(sandbox.request.id)
        for holder in list(await here.host.builds.held()):
            await here.host.builds.release(holder)
        await emptied(here)
        working.cancel()
        await parts.templates.close()


async def emptied(world: World) -> None:
    """Nothing is left once the work behind, which is let end, is done."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 20
    await world.host.builds.collect()
    while left := world.left():
        assert loop.time() < deadline, left
        await asyncio.sleep(0.05)
        await world.host.builds.collect()


# What must not be lost.


async def mark(world: World, sandbox: Sandbox, text: str) -> None:
    """Leave something in memory, and on the disk that is written to now."""
    async with sandbox.use() as parts:
        ram = parts.machine.ram
        with Path(f"/proc/{ram.pid}/mem").open("r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), pattern(text), ram.address + FIRST_PAGE * PAGE)
        name, *_ = disks_of(world, sandbox)
        subprocess.run(("qemu-io", "-c", f"write -P {ord(text[0])} 4096 4096", name), check=True, capture_output=True)


def pattern(text: str) -> bytes:
    return (text.encode() * (PAGE // len(text) + 1))[:PAGE] * PAGES


async def memory_of(sandbox: Sandbox) -> bytes:
    async with sandbox.use() as parts:
        ram = parts.machine.ram
        with Path(f"/proc/{ram.pid}/mem").open("rb", buffering=0) as memory:
            return os.pread(memory.fileno(), PAGES * PAGE, ram.address + FIRST_PAGE * PAGE)


def disks_of(world: World, sandbox: Sandbox) -> list[str]:
    """The names, for QEMU's tools, of what its machine sees; the second cannot be written to."""
    parts = sandbox._parts
    assert parts is not None
    store, ground = world.host.builds.store, parts.ground
    *below, root = store.get(ground.parent_id).disk_layers()
    layers = (*reversed(ground.pending), *below)
    seen = json.loads(chain.as_json((ground.disk, *layers), root).removeprefix("json:"))
    return ["json:" + json.dumps({**seen, "read-only": False}), chain.as_json((ground.disk, *layers), root)]


def is_on_disk(world: World, sandbox: Sandbox, text: str) -> bool:
    name = disks_of(world, sandbox)[1]
    words = ("qemu-io", "-r", "-c", f"read -P {ord(text[0])} 4096 4096", name)
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


async def require_kept(world: World, sandbox: Sandbox, text: str) -> None:
    assert sandbox.state is State.RUNNING
    assert await memory_of(sandbox) == pattern(text), "memory is lost"
    assert is_on_disk(world, sandbox, text), "a disk layer is lost"
    async with sandbox.use() as parts:
        answer = await parts.guest.processes.running()
        assert answer == [], "its guest answers"


# Operations on a sandbox: each leaves one that can be looked at.


@dataclass(frozen=True)
class Operation:
    """``do`` does it with a build id; ``after`` brings the sandbox back to running for a look."""

    name: str
    do: Callable[[World, Sandbox, UUID], Awaitable[object]]
    after: Callable[[World, Sandbox], Awaitable[Sandbox]]


async def stay(world: World, sandbox: Sandbox) -> Sandbox:
    return world.registry.get(sandbox.request.id)


async def resumed(world: World, sandbox: Sandbox) -> Sandbox:
    there = world.registry.get(sandbox.request.id)
    if there.state is not State.PAUSED:
        return there
    return await world.moments.resume(wanted(there.build_id, there.request.id))


async def do_pause(world: World, sandbox: Sandbox, build_id: UUID) -> object:
    return await world.moments.pause(sandbox.request.id, build_id)


async def do_snapshot(world: World, sandbox: Sandbox, build_id: UUID) -> object:
    return await world.moments.snapshot(sandbox.request.id, build_id, TemplateId(build_id))


async def do_fork(world: World, sandbox: Sandbox, build_id: UUID) -> object:
    source = await memory_of(sandbox)
    before = {each.request.id for each in world.registry.all()}
    try:
        _, children = await world.moments.fork(sandbox.request.id, build_id, [wanted(), wanted()])
    except WrennError:
        await asyncio.sleep(0)
        assert {each.request.id for each in world.registry.all()} <= before, "all or none"
        raise
    for child in children:
        assert await memory_of(child) == source
        await world.registry.destroy(child.request.id)
    return children


async def do_rollback(world: World, sandbox: Sandbox, _: UUID) -> object:
    assert sandbox.build_id is not None
    return await world.moments.rollback(sandbox.request.id, sandbox.build_id)


OPERATIONS = [
    Operation("pause", do_pause, resumed),
    Operation("snapshot", do_snapshot, stay),
    Operation("fork", do_fork, stay),
    Operation("rollback", do_rollback, stay),
]


async def prepared(world: World, name: str) -> Sandbox:
    """A running sandbox with marks; one that is to be rolled back has a moment of its own to go back to."""
    sandbox = await world.create()
    await mark(world, sandbox, "first mark")
    if name == "rollback":
        await world.moments.snapshot(sandbox.request.id, uuid4(), TemplateId(uuid4()))
    return sandbox


async def points_of(world: World, operation: Operation) -> list[str]:
    sandbox = await prepared(world, operation.name)
    world.script.begin()
    await operation.do(world, sandbox, uuid4())
    points = world.script.end()
    await world.registry.destroy(sandbox.request.id)
    return points


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_every_step_failed_and_repeated(world, operation: Operation) -> None:
    async def scene(here: World) -> None:
        points = await points_of(here, operation)
        assert len(points) >= 4, points
        sandbox = await prepared(here, operation.name)
        for number, point in enumerate(points):
            build_id = uuid4()
            here.script.begin(fail_at=number)
            failed = False
            try:
                await operation.do(here, sandbox, build_id)
            except WrennError:
                failed = True
            here.script.end()
            # A guest that cannot be woken after a failure, or that is quiet no more, keeps nobody from going on.
            sandbox = await operation.after(here, sandbox)
            await require_kept(here, sandbox, "first mark")
            if failed:
                standing = sandbox.build_id == build_id  # a fork whose children failed: its source goes on above it
                assert (await here.host.builds.find(build_id) is None) != standing, f"{point}: half a build"
                await operation.do(here, sandbox, build_id)
                sandbox = await operation.after(here, sandbox)
                await require_kept(here, sandbox, "first mark")

    world(scene)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_every_step_cancelled_by_a_destroy(world, operation: Operation) -> None:
    async def scene(here: World) -> None:
        points = await points_of(here, operation)
        for number, point in enumerate(points):
            if point in {"publish", "hold", "held", "release", "make_overlay"}:
                continue  # in a thread, which is let end
            sandbox = await prepared(here, operation.name)
            here.script.begin(hang_at=number)
            async with asyncio.TaskGroup() as group:
                doing = group.create_task(_outcome(operation.do(here, sandbox, uuid4())))
                hung = await _reached(here.script, doing, group)
                here.script.armed = False
                for each in here.registry.all():
                    await here.registry.destroy(each.request.id)
                assert isinstance(await doing, WrennError) or not hung, point
            assert here.registry.all() == []
            assert not list((here.root / "run").iterdir()), point

    world(scene)


async def _reached(script: Script, doing: asyncio.Task[object], group: asyncio.TaskGroup) -> bool:
    """Wait until it hangs; False when it ended: children of a fork pass their points in no fixed order."""
    waiting = group.create_task(script.reached.wait())
    await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return script.reached.is_set()


async def _outcome(work: Awaitable[object]) -> object:
    try:
        return await work
    except WrennError as error:
        return error


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_an_operation_under_way_is_joined_and_goes_on_without_its_caller(world, operation: Operation) -> None:
    async def scene(here: World) -> None:
        sandbox, build_id = await prepared(here, operation.name), uuid4()
        if operation.name == "fork":
            return  # its children's ids differ from call to call here
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(operation.do(here, sandbox, build_id))
            joining = group.create_task(operation.do(here, sandbox, build_id))
            while sandbox.operation is None:
                await asyncio.sleep(0)
            leaving.cancel()
            await joining
        sandbox = await operation.after(here, sandbox)
        await require_kept(here, sandbox, "first mark")

    world(scene)


@dataclass
class Restore:
    """A create, or a resume from a new pause, of one sandbox again and again."""

    world: World
    resumes: bool
    sandbox_id: SandboxId = field(default_factory=lambda: SandboxId(uuid4()))
    build_id: UUID | None = None

    async def prepare(self) -> None:
        """What is restored: for a resume a chain of two, always as short."""
        await self.world.registry.destroy(self.sandbox_id)
        if self.resumes:
            sandbox = await self.world.create(sandbox_id=self.sandbox_id)
            await mark(self.world, sandbox, "first mark")
            self.build_id = (await self.world.moments.pause(self.sandbox_id, uuid4())).build.id

    async def do(self) -> Sandbox:
        if self.resumes:
            return await self.world.moments.resume(wanted(self.build_id, self.sandbox_id))
        return await self.world.create(sandbox_id=self.sandbox_id)

    async def succeed(self) -> None:
        made = await self.do()
        if self.resumes:
            await require_kept(self.world, made, "first mark")
        await self.prepare()

    async def interrupt(self) -> None:
        if self.resumes:
            self.world.registry.get(self.sandbox_id).stop()  # as an agent does that is to end
        else:
            await self.world.registry.destroy(self.sandbox_id)

    def require_as_before(self, point: str) -> None:
        states = [each.state for each in self.world.registry.all()]
        assert states == ([State.PAUSED] if self.resumes else []), point
        assert not list((self.world.root / "run").iterdir()), point


@pytest.mark.parametrize("kind", ["create", "resume"])
def test_every_step_of_a_restore_failed_repeated_and_cancelled(world, kind: str) -> None:
    async def scene(here: World) -> None:
        restore = Restore(here, kind == "resume")
        await restore.prepare()
        here.script.begin()
        await restore.do()
        points = here.script.end()
        assert {"link", "make_overlay", "start", "load", "init"} <= set(points), points
        await restore.prepare()
        for number, point in enumerate(points):
            here.script.begin(fail_at=number)
            with pytest.raises(WrennError):
                await restore.do()
            here.script.end()
            await asyncio.sleep(0)
            restore.require_as_before(point)
            await restore.succeed()
        for number, point in enumerate(points):
            if point == "make_overlay":
                continue  # in a thread, which is let end
            here.script.begin(hang_at=number)
            async with asyncio.TaskGroup() as group:
                doing = group.create_task(_outcome(restore.do()))
                await here.script.reached.wait()
                here.script.armed = False
                await restore.interrupt()
                assert isinstance(await doing, WrennError), point
            await asyncio.sleep(0)
            restore.require_as_before(point)
            await restore.succeed()

    world(scene)


def test_a_destroy_whose_steps_fail_can_be_repeated(world) -> None:
    async def scene(here: World) -> None:
        for fail_at in range(3):
            sandbox = await prepared(here, "")
            await here.moments.snapshot(sandbox.request.id, uuid4(), TemplateId(uuid4()))
            here.script.begin(fail_at=fail_at)
            with suppress(WrennError):
                await here.registry.destroy(sandbox.request.id)
            here.script.end()
            assert not list((here.root / "run").iterdir()), "its machine is gone in any case"
            await here.registry.destroy(sandbox.request.id)
            assert here.registry.all() == []
            assert str(sandbox.request.id) not in await here.host.builds.held()

    world(scene)
