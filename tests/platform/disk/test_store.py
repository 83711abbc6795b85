"""The store before a real disk: agents that are killed at every step, disks that are full, and the real qemu-img."""

from __future__ import annotations

import fcntl
import io
import json
import os
import random
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.leaks import Footprint
from tests.unit.disk.world import PAGES, SIZE, World, page
from wrenn_sandbox.core.errors import Exhausted, Unavailable, WrennError
from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.disk import chain, qemu_img
from wrenn_sandbox.disk import store as stores
from wrenn_sandbox.disk.build import Build
from wrenn_sandbox.disk.store import LONG_CHAIN, BuildStore

needs_qemu_img = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-io") is None,
    reason="qemu-img is not installed (apt install qemu-utils)",
)
pytestmark = pytest.mark.platform

SANDBOX, TEMPLATE = f"sb-{uuid4()}", f"tpl-{uuid4()}"
KILLED, FINISHED, FAILED = 9, 0, 1


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = Footprint.take()
    yield
    left = Footprint.take().left_behind(before)
    assert not {"processes", "mounts", "descriptors"} & left.keys(), left


# Killed at every step


class Steps:
    """Counts what changes the disk, and ends this process like a kill does at step ``last``."""

    def __init__(self, last: int) -> None:
        self.last, self.count = last, 0
        for name in ("rename", "unlink", "rmdir", "mkdir", "link", "fsync", "chmod", "chown"):
            setattr(os, name, self.counted(getattr(os, name)))
        for name in ("write", "pwrite", "pwritev", "copy_file_range", "ftruncate", "truncate"):
            setattr(os, name, self.counted(getattr(os, name)))
        fcntl.ioctl = self.counted(fcntl.ioctl)
        real_open, real_io_open = os.open, io.open

        def open_(path: object, flags: int, *args: object, **kwargs: object) -> int:
            fd = real_open(path, flags, *args, **kwargs)  # type: ignore[call-overload]
            if flags & (os.O_CREAT | os.O_TRUNC):
                self.step()  # with the file there, and nothing in it
            return fd

        def io_open(file: object, mode: str = "r", *args: object, **kwargs: object) -> object:
            opened = real_io_open(file, mode, *args, **kwargs)
            if set(mode) & set("wxa+"):
                self.step()
            return opened

        os.open, io.open = open_, io_open  # type: ignore[assignment]

    def counted(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self.step()
            return real(*args, **kwargs)

        return call

    def step(self) -> None:
        self.count += 1
        if self.count == self.last:
            os._exit(KILLED)


def _killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a process of its own that is killed at one step; False when it ended before."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            Steps(step)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(FINISHED)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {KILLED, FINISHED}
    return code == KILLED


def _kill_everywhere(world: World, work: Callable[[BuildStore], object], check: Callable[[BuildStore], None]) -> int:
    """Kill ``work`` at each of its steps in turn, each time from the same beginning; returns how many there were."""
    data, before = world.root / "data", world.root / "before"
    data.rename(before)
    for step in range(1, 1000):
        shutil.copytree(before, data)
        store = BuildStore(data, world.catalog)
        killed = _killed_at(step, lambda store=store: work(store))
        found = BuildStore(data, world.catalog)  # before any clearing up: what is half-made must not be seen
        _require_whole(world, found)
        found.sweep()
        assert not any(name.startswith(".") for name in world.names())
        check(found)
        shutil.rmtree(data)
        if not killed:
            before.rename(data)
            return step - 1
    raise AssertionError("it has no end")


def _require_whole(world: World, store: BuildStore) -> None:
    for build in store.all():
        store.verify(build.id)
        assert world.memory(build) == world.restored(build) == world.memories[build.id]
    for build_id in store.held().values():
        store.get(build_id)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_pause_killed_anywhere_leaves_all_of_its_build_or_nothing(world: World) -> None:
    parent = world.capture(world.base, {1: page(1)})
    world.store.hold(SANDBOX, parent.id)
    build_id, content = uuid4(), {2: page(2), 3: bytes(PAGE)}
    world.capture(parent.id, content, build_id)  # once for the tests' own book
    world.store.collect()

    def pause(store: BuildStore) -> None:
        world.store = store
        world.capture(parent.id, content, build_id)
        store.hold(SANDBOX, build_id)

    seen: set[tuple[UUID, bool]] = set()

    def check(store: BuildStore) -> None:
        held = store.held()[SANDBOX]
        seen.add((held, build_id in {b.id for b in store.all()}))
        store.collect()
        assert {b.id for b in store.all()} == {parent.id, held}

    assert _kill_everywhere(world, pause, check) > 20
    assert seen == {(parent.id, False), (parent.id, True), (build_id, True)}


def test_a_removal_killed_anywhere_leaves_no_build_without_its_ground(world: World) -> None:
    builds = world.chain(4)
    world.store.hold(SANDBOX, builds[-1].id)
    world.store.hold(TEMPLATE, builds[1].id)

    def destroy(store: BuildStore) -> None:
        store.release(SANDBOX)
        store.collect()

    def check(store: BuildStore) -> None:
        assert store.held()[TEMPLATE] == builds[1].id
        if SANDBOX not in store.held():
            store.collect()
            assert {b.id for b in store.all()} == {builds[0].id, builds[1].id}

    assert _kill_everywhere(world, destroy, check) > 10


def test_a_materialisation_killed_anywhere_leaves_a_flat_file_or_none(world: World) -> None:
    build = world.chain(3)[-1]

    def check(store: BuildStore) -> None:
        assert store.materialise(build.id).read_bytes() == world.memories[build.id]

    assert _kill_everywhere(world, lambda store: store.materialise(build.id), check) > 3


@needs_qemu_img
def test_a_flattening_killed_anywhere_leaves_the_build_as_it_was_or_flat(world: World) -> None:
    disks = Disks(world)
    last = world.chain(LONG_CHAIN)[-1]
    world.store.hold(SANDBOX, last.id)
    world.store.materialise(last.id)  # which has a test of its own
    disk = disks.content(last)

    def work(store: BuildStore) -> None:
        store.flatten(last.id)
        store.collect()

    flat: list[bool] = []

    def check(store: BuildStore) -> None:
        flat.append(not store.get(last.id).manifest.disk_chain)
        store.flatten(last.id)
        store.collect()
        assert [b.id for b in store.all()] == [last.id]
        assert disks.content(store.get(last.id)) == disk

    assert _kill_everywhere(world, work, check) > 20
    assert sorted(flat) == flat  # once flat, always flat
    assert {True, False} == set(flat)


def test_everything_is_on_disk_before_it_has_its_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash of the whole machine takes is what was not synced, so the order is the promise."""
    order: list[tuple[str, str]] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(fd: int) -> None:
        order.append(("sync", Path(f"/proc/self/fd/{fd}").readlink().name))
        real_sync(fd)

    def rename(old: Path, new: Path) -> None:
        order.append(("rename", Path(new).name))
        real_rename(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    build = world.capture(world.base, {1: page(1)})
    world.store.hold(SANDBOX, build.id)
    files = {"state", "memory", "memory.header", "disk.qcow2", "manifest.json"}
    named = order.index(("rename", str(build.id)))
    assert {name for what, name in order[:named] if what == "sync"} == files | {f".{build.id}.new"}
    assert order[named - 1] == ("sync", f".{build.id}.new")
    assert order[named + 1 :] == [
        ("sync", "builds"),
        ("sync", f".{SANDBOX}.new"),
        ("rename", SANDBOX),
        ("sync", "holds"),
    ]


# Every write fails


def _failing(monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> list[int]:
    """Let the ``at``-th call of os.<name> fail for want of room; the list has the number of calls."""
    real, calls = getattr(os, name), [0]

    def call(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == at:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.parametrize("name", ["fsync", "rename", "mkdir", "link", "chmod"])
def test_a_pause_that_fails_at_any_call_leaves_nothing(world: World, name: str) -> None:
    parent = world.capture(world.base, {1: page(1)})
    world.store.hold(SANDBOX, parent.id)
    for at in range(1, 100):
        with pytest.MonkeyPatch.context() as patched:
            calls = _failing(patched, name, at)
            try:
                build = world.capture(parent.id, {2: page(2)})
                world.store.hold(SANDBOX, build.id)
            except Exhausted as error:
                assert error.slug == "host_disk_full"
            if calls[0] < at:
                break
        held = world.store.held()[SANDBOX]
        world.store.collect()
        assert world.names() == {str(parent.id), str(held)}
        world.store.hold(SANDBOX, parent.id)
        world.store.collect()
    else:
        raise AssertionError("it has no end")
    assert at > 1


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def _fill(folder: Path, left_bytes: int) -> Path:
    """Take all the room of a file system but for some."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(PAGE, free.f_bavail * free.f_bsize - left_bytes))
    return ballast


def _until_it_fits(small: Path, world: World, work: Callable[[], object]) -> int:
    """Try ``work`` with more and more room; returns how often there was too little, each time leaving nothing."""
    for failed in range(2000):
        before = sorted(path for path in world.root.rglob("*") if path.is_file())
        ballast = _fill(small, failed * 4 * PAGE)
        try:
            work()
            return failed
        except Exhausted as error:
            assert error.slug == "host_disk_full"
        finally:
            ballast.unlink()
        assert sorted(path for path in world.root.rglob("*") if path.is_file()) == before
        assert not any(name.startswith(".") for name in world.names())
    raise AssertionError("it never fits")


def test_a_full_disk_leaves_nothing_half_made(small: Path) -> None:
    world = World(small / "world")
    parent = world.capture(world.base, {1: page(1)})
    world.store.hold(SANDBOX, parent.id)
    content = {n: page(n) for n in range(64)}
    assert _until_it_fits(small, world, lambda: world.capture(parent.id, content)) > 10
    build = next(b for b in world.store.all() if b.id != parent.id)
    assert _until_it_fits(small, world, lambda: world.store.hold(TEMPLATE, build.id)) > 0
    assert _until_it_fits(small, world, lambda: world.store.materialise(build.id)) > 10
    world.store.verify(build.id)
    assert world.store.held() == {SANDBOX: parent.id, TEMPLATE: build.id}
    assert world.restored(world.store.get(build.id)) == world.memories[build.id]


@needs_qemu_img
def test_a_disk_too_full_for_a_flat_layer_keeps_the_chain(small: Path) -> None:
    world = World(small / "world")
    disks = Disks(world)
    last = world.chain(LONG_CHAIN)[-1]
    world.store.materialise(last.id)
    disk, manifest = disks.content(last), world.store.get(last.id).manifest
    for left in (0, 200 << 10, 400 << 10):
        ballast = _fill(small, left)
        with pytest.raises(Exhausted):
            world.store.flatten(last.id)
        ballast.unlink()
        assert world.store.get(last.id).manifest == manifest
        assert disks.content(world.store.get(last.id)) == disk
    assert world.store.flatten(last.id)
    assert disks.content(world.store.get(last.id)) == disk


# Real disks


@dataclass
class Disks:
    """What the guests of a world's builds write to their disks, and what is read from them."""

    world: World
    guests: int = 0

    def __post_init__(self) -> None:
        self.world.write_disk = self.write

    def write(self, overlay: Path, parent: Build) -> None:
        """Change some, repeat some, make some zero, in a way of its own for each guest."""
        self.guests += 1
        number = self.guests % 250
        *layers, root = parent.disk_layers()
        described = json.loads(chain.as_json((overlay, *layers), root).removeprefix("json:"))
        qemu_io(
            "json:" + json.dumps({**described, "read-only": False}),
            f"write -q -P {number} {number % 40 * 20}k 12k",
            "write -q -P 77 256k 4k",
            f"write -q -z {(number - 1) % 40 * 20 + 4}k 4k",
            *(["write -q -P 0 512k 4k"] if number % 2 else [f"write -q -P {number} 512k 8k"]),
        )

    def content(self, build: Build) -> bytes:
        """All of a disk, seen through the chain."""
        *layers, root = build.disk_layers()
        out = self.world.root / "disk.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", chain.as_json(layers, root), out], check=True)
        data = out.read_bytes()
        out.unlink()
        return data


def qemu_io(disk: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", *words, disk], check=True, stdout=subprocess.DEVNULL)


@needs_qemu_img
def test_ten_generations_become_one_that_is_equal(world: World) -> None:
    disks = Disks(world)
    builds = world.chain(10)
    last = builds[-1]
    disk = disks.content(last)
    assert len(set(map(disks.content, builds))) == 10
    world.store.hold(SANDBOX, last.id)
    assert world.store.flatten(last.id)
    assert len(world.store.collect()) == 9
    again = world.store.get(last.id)
    assert again.disk_layers() == (again.disk, world.catalog.rootfs("rootfs"))
    assert disks.content(again) == disk
    assert world.memory(again) == world.restored(again) == world.memories[last.id]
    world.store.verify(last.id)
    subprocess.run(["qemu-img", "check", "-q", again.disk], check=True)
    assert again.size_bytes < 3 * SIZE
    children = world.capture(last.id, {PAGES - 1: page(7)})  # and the chain grows again from there
    assert disks.content(children) != disk
    assert children.disk_layers()[1:] == again.disk_layers()


@needs_qemu_img
def test_children_of_a_flattened_build_read_the_same_disk(world: World) -> None:
    """A layer below may have had what the flattened one leaves to the root: the old chain must be out of the way."""
    disks = Disks(world)
    builds = world.chain(LONG_CHAIN)
    child = world.capture(builds[-1].id, {1: page(1)})
    disk = disks.content(child)
    world.store.hold(SANDBOX, child.id)
    assert world.store.flatten(builds[-1].id)
    world.store.collect()
    assert disks.content(world.store.get(child.id)) == disk
    assert world.restored(world.store.get(child.id)) == world.memories[child.id]


@needs_qemu_img
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_in_whatever_order_nothing_held_is_lost(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LONG_CHAIN", 3)
    rnd, disks = random.Random(seed), Disks(world)
    seen: dict[UUID, bytes] = {}
    holders = [f"sb-{uuid4()}" for _ in range(4)]
    for _ in range(40):
        held = list(world.store.held().values())
        match rnd.choice(["capture", "capture", "hold", "release", "materialise", "flatten", "flatten", "collect"]):
            case "capture":  # of a sandbox restored from a held build, or of a new one
                parent = rnd.choice([*held, *held, world.base])
                pages = rnd.sample(range(PAGES), 5)
                content = {n: rnd.choice([bytes(PAGE), page(rnd.randrange(1 << 30))]) for n in pages}
                build = world.capture(parent, content)
                seen[build.id] = disks.content(build)
                world.store.hold(rnd.choice(holders), build.id)
            case "hold" if held:
                world.store.hold(rnd.choice(holders), rnd.choice(held))
            case "release":
                world.store.release(rnd.choice(holders))
            case "materialise" if held:
                world.store.materialise(rnd.choice(held))
            case "flatten" if held:
                world.store.flatten(rnd.choice(held))
            case "collect":
                world.store.collect()
    world.store = world.reopened()
    world.store.collect()
    assert world.store.held()
    for build_id in world.store.held().values():
        build = world.store.get(build_id)
        assert world.memory(build) == world.restored(build) == world.memories[build_id]
        assert disks.content(build) == seen[build_id]
    for build in world.store.all():
        world.store.verify(build.id)
    for holder in holders:
        world.store.release(holder)
    world.store.collect()
    assert world.names() == set()


@needs_qemu_img
def test_disks_are_read_wherever_the_store_lies(world: World) -> None:
    disks = Disks(world)
    last = world.chain(LONG_CHAIN)[-1]
    disk = disks.content(last)
    elsewhere = world.root / "elsewhere"
    (world.root / "data").rename(elsewhere)
    store = BuildStore(elsewhere, world.catalog)
    assert disks.content(store.get(last.id)) == disk
    assert store.flatten(last.id)
    assert disks.content(store.get(last.id)) == disk
    assert world.memory(store.get(last.id)) == world.memories[last.id]


@needs_qemu_img
def test_who_has_the_old_files_open_goes_on_reading_them(world: World) -> None:
    Disks(world)
    last = world.chain(LONG_CHAIN)[-1]
    world.store.hold(SANDBOX, last.id)
    *layers, root = last.disk_layers()
    image = chain.as_json(layers, root).replace('"locking": "off"', '"locking": "on"')
    with subprocess.Popen(
        ["qemu-io", "-r", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as reader:
        assert reader.stdin is not None
        reader.stdin.write(b"read -P 77 256k 4k\n")
        reader.stdin.flush()
        assert world.store.flatten(last.id)
        assert len(world.store.collect()) == LONG_CHAIN - 1
        said, _ = reader.communicate(b"read -P 77 256k 4k\nread -P 8 160k 12k\nread -P 0 144k 4k\n", timeout=60)
    assert reader.returncode == 0
    assert b"failed" not in said
    assert said.count(b"read 4096/4096") == 3


@needs_qemu_img
def test_long_work_ends_when_the_store_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    last = world.chain(LONG_CHAIN)[-1]
    world.store.close()
    slow = world.root / "qemu-img"
    slow.write_text("#!/bin/sh\nsleep 300\n")
    slow.chmod(0o755)
    monkeypatch.setattr(qemu_img, "find_tool", lambda _: slow)
    with pytest.raises(Unavailable) as caught:
        world.store.flatten(last.id)
    assert caught.value.slug == "agent_stopping"
    assert world.store.get(last.id).manifest == last.manifest


@needs_qemu_img
def test_a_broken_layer_is_not_flattened_over(world: World) -> None:
    builds = world.chain(LONG_CHAIN)
    disk = builds[3].disk
    disk.chmod(0o600)
    disk.write_bytes(b"QFI\xfb" + b"x" * 4096)
    with pytest.raises(WrennError) as caught:
        world.store.flatten(builds[-1].id)
    assert caught.value.slug == "disk_unavailable"
    assert world.store.get(builds[-1].id).manifest == builds[-1].manifest
