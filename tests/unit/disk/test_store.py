from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.unit.disk.world import PAGES, SIZE, World, page
from wrenn_sandbox.core.artefacts import FLAT
from wrenn_sandbox.core.errors import Bug, Conflict, Exhausted, NotFound, Unavailable
from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.disk import compatibility, overlay
from wrenn_sandbox.disk import store as stores
from wrenn_sandbox.disk.build import FLAT_MEMORY

SANDBOX = f"sb-{uuid4()}"


def _flat_disk(layers: object, root: Path, target: Path, wanted: object) -> None:
    overlay.create(target, root, "raw")


def test_a_published_build_is_what_was_captured(world: World) -> None:
    build = world.capture(world.base, {1: page(77), 3: bytes(PAGE)})
    assert world.store.get(build.id).manifest == build.manifest
    assert world.memory(build) == world.memories[build.id]
    assert world.restored(build) == world.memories[build.id]
    assert build.state.read_bytes() == b"state of " + build.id.bytes
    assert world.names() == {str(build.id)}


def test_every_file_is_hashed_read_only_and_roots(world: World) -> None:
    build = world.capture(world.base, {1: page(77)})
    files = {path.name: path for path in build.directory.iterdir()}
    assert set(files) == {"manifest.json", "state", "memory", "memory.header", "disk.qcow2"}
    del files["manifest.json"]
    assert build.manifest.hashes == {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()}
    assert {p.stat().st_mode & 0o777 for p in files.values()} == {0o444}
    assert {p.stat().st_uid for p in files.values()} == {os.geteuid()}
    assert world.builds.stat().st_mode & 0o777 == 0o700


def test_nothing_is_hashed_on_the_way_to_a_restore(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    build = world.capture(world.base, {1: page(77)})
    monkeypatch.delattr("wrenn_sandbox.disk.durability.sha256")
    with world.reopened().pinned(build.id) as again:
        assert again.restore_plan()[1]
        assert len(again.disk_layers()) == 3


def test_publishing_twice_gives_the_first(world: World) -> None:
    first = world.capture(world.base, {1: page(1)})
    second = world.capture(world.base, {1: page(2)}, first.id)
    assert second.manifest == first.manifest
    assert world.store.get(first.id).memory.read_bytes() == page(1)
    assert world.names() == {str(first.id)}


def test_a_draft_that_fails_leaves_nothing(world: World) -> None:
    with pytest.raises(KeyError), world.store.draft(uuid4()) as draft:
        draft.memory.write_bytes(b"half")
        raise KeyError
    assert world.names() == set()


def test_a_full_disk_in_a_draft_says_so(world: World) -> None:
    with pytest.raises(Exhausted) as caught, world.store.draft(uuid4()):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.slug == "host_disk_full"
    assert world.names() == set()


def test_one_draft_of_a_build_at_a_time(world: World) -> None:
    build_id = uuid4()
    with world.store.draft(build_id) as draft:
        draft.memory.write_bytes(b"mine")
        with pytest.raises(Conflict) as caught, world.store.draft(build_id):
            raise AssertionError
        assert caught.value.slug == "build_in_progress"
        assert draft.memory.read_bytes() == b"mine"
    with world.store.draft(build_id):
        pass


@pytest.mark.parametrize("missing", ["state", "memory", "memory.header", "disk.qcow2"])
def test_a_draft_that_lacks_a_file_is_refused(world: World, missing: str) -> None:
    base = world.store.get(world.base)
    with pytest.raises(Unavailable, match=f"has no {missing}"), world.store.draft(uuid4()) as draft:
        world.fill(draft, base, {1: page(1)})
        (draft.directory / missing).unlink()
        world.store.publish(draft, world.manifest(draft.build_id, base))
    assert world.names() == set()


def test_a_draft_whose_pages_are_cut_off_is_refused(world: World) -> None:
    base = world.store.get(world.base)
    with pytest.raises(Unavailable, match="memory is shorter"), world.store.draft(uuid4()) as draft:
        world.fill(draft, base, {1: page(1), 5: page(2)})
        os.truncate(draft.memory, PAGE)
        world.store.publish(draft, world.manifest(draft.build_id, base))


def test_a_draft_whose_ground_is_gone_is_refused(world: World) -> None:
    parent = world.capture(world.base, {1: page(1)})
    with pytest.raises(Unavailable) as caught, world.store.draft(uuid4()) as draft:  # names no parent to keep
        world.fill(draft, parent, {2: page(2)})
        world.store.collect()
        world.store.publish(draft, world.manifest(draft.build_id, parent))
    assert caught.value.slug == "build_broken"
    assert world.names() == set()


def test_a_draft_of_another_build_is_our_fault(world: World) -> None:
    with pytest.raises(Bug), world.store.draft(uuid4()) as draft:
        world.store.publish(draft, world.manifest(uuid4()))


def test_what_is_in_a_draft_by_chance_is_not_published(world: World) -> None:
    base = world.store.get(world.base)
    with world.store.draft(uuid4()) as draft:
        world.fill(draft, base, {1: page(1)})
        (draft.directory / "notes").touch()
        build = world.store.publish(draft, world.manifest(draft.build_id, base))
    assert not (build.directory / "notes").exists()


def test_a_manifest_names_the_disks_below_as_they_are_now(world: World) -> None:
    one, two, three = world.chain(3)
    assert one.manifest.disk_chain == (str(world.base),)
    assert three.manifest.disk_chain == (str(two.id), str(one.id), str(world.base))


def test_builds_are_listed_oldest_first_and_a_broken_one_is_left_out(world: World) -> None:
    one, two, three = world.chain(3)
    (two.directory / "manifest.json").write_text("{")
    assert [b.id for b in world.reopened().all()] == [one.id, three.id]
    with pytest.raises(Unavailable) as caught:
        world.store.get(two.id)
    assert caught.value.slug == "build_broken"


def test_an_unknown_build_is_not_found(world: World) -> None:
    with pytest.raises(NotFound) as caught:
        world.store.get(UUID(int=7))
    assert caught.value.slug == "build_not_found"


def test_materialising_gives_a_flat_file_that_restores_map(world: World) -> None:
    build = world.chain(3)[-1]
    assert world.store.materialise(build.id) == build.directory / FLAT_MEMORY
    again = world.store.get(build.id)
    assert again.restore_plan() == (build.directory / FLAT_MEMORY, ())
    assert again.flat is not None
    assert again.flat.read_bytes() == world.memories[build.id]
    assert again.flat.stat().st_mode & 0o777 == 0o444
    assert world.memory(again) == world.memories[build.id]
    assert world.store.materialise(build.id) == again.flat
    assert str(build.id) in world.names()
    assert not any(name.startswith(".") for name in world.names())


def test_children_of_a_materialised_build_begin_with_its_file(world: World) -> None:
    parent = world.chain(3)[-1]
    world.store.materialise(parent.id)
    child = world.capture(parent.id, {9: page(99)})
    flat, patches = child.restore_plan()
    assert flat == parent.directory / FLAT_MEMORY
    assert [(p.address, p.length) for p in patches] == [(9 * PAGE, PAGE)]
    assert world.restored(child) == world.memories[child.id]


def test_a_flat_file_that_is_not_equal_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stores.materialise

    def wrong(source: object, target: Path) -> None:
        real(source, target)  # type: ignore[arg-type]
        target.chmod(0o600)
        with target.open("r+b") as file:
            file.seek(5 * PAGE)
            file.write(b"x")

    build = world.chain(2)[-1]
    monkeypatch.setattr(stores, "materialise", wrong)
    with pytest.raises(Bug):
        world.store.materialise(build.id)
    assert world.store.get(build.id).flat is None
    assert world.names() == {str(b.id) for b in world.store.all()}


def test_a_base_template_is_flat_already(world: World) -> None:
    with pytest.raises(Bug):
        world.store.materialise(world.base)


def test_a_short_chain_is_left_alone(world: World) -> None:
    build = world.chain(stores.LONG_CHAIN - 2)[-1]
    assert not world.store.flatten(build.id)
    assert world.store.get(build.id).manifest == build.manifest


def test_a_long_chain_is_flattened_and_nothing_below_is_needed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.chain, "flatten", _flat_disk)
    builds = world.chain(stores.LONG_CHAIN)
    last = builds[-1]
    world.store.hold(SANDBOX, last.id)
    assert world.store.flatten(last.id)
    again = world.store.get(last.id)
    assert (again.manifest.disk_chain, again.manifest.parent) == ((), last.manifest.parent)
    assert set(world.store.collect()) == {b.id for b in builds[:-1]}
    assert {p.name for p in again.directory.iterdir()} == {"manifest.json", "state", "memory.flat", "disk.flat.qcow2"}
    assert world.memory(again) == world.restored(again) == world.memories[last.id]
    assert again.disk_layers() == (again.disk, world.catalog.rootfs("rootfs"))
    assert world.store.needed_bases() == frozenset()
    world.store.verify(last.id)
    assert not world.store.flatten(last.id)
    child = world.capture(last.id, {2: page(5), 4: bytes(PAGE)})
    assert child.header.generation == 1
    assert world.memory(child) == world.restored(child) == world.memories[child.id]
    flat, patches = child.restore_plan()
    assert (flat, sum(p.length for p in patches)) == (again.memory, 2 * PAGE)


def test_a_build_that_was_captured_flat_keeps_its_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.chain, "flatten", _flat_disk)
    monkeypatch.setattr(stores, "LONG_CHAIN", 2)
    base = world.store.get(world.base)
    with world.store.draft(uuid4(), base.id) as draft:
        world.fill(draft, base, {})
        draft.memory.write_bytes(world.memories[world.base])
        manifest = replace(world.manifest(draft.build_id, base), memory_header=FLAT)
        build = world.store.publish(draft, manifest)
    assert world.store.flatten(build.id)
    again = world.store.get(build.id)
    assert (again.memory.name, again.header, again.manifest.disk_chain) == ("memory", build.header, ())
    assert world.restored(again) == world.memory(again) == world.memories[world.base]


def test_captures_from_before_a_flattening_keep_what_they_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.chain, "flatten", _flat_disk)
    builds = world.chain(stores.LONG_CHAIN)
    parent = builds[-1]
    child = world.capture(parent.id, {2: page(5)})
    world.store.hold(SANDBOX, child.id)
    world.store.flatten(parent.id)
    assert world.store.collect() == ()
    again = world.store.get(child.id)
    assert world.memory(again) == world.restored(again) == world.memories[child.id]
    flat, patches = again.restore_plan()
    assert flat == parent.directory / FLAT_MEMORY
    assert [(p.address, p.length) for p in patches] == [(2 * PAGE, PAGE)]
    layers = (child.disk, world.store.get(parent.id).disk, world.catalog.rootfs("rootfs"))
    assert again.disk_layers() == layers
    world.store.verify(parent.id)
    world.store.verify(child.id)


def test_a_closed_store_begins_no_long_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def flatten(layers: object, root: object, target: Path, wanted: Callable[[], bool]) -> None:
        asked.append(wanted())
        target.touch()

    monkeypatch.setattr(stores.chain, "flatten", flatten)
    last = world.chain(stores.LONG_CHAIN)[-1]
    world.store.close()
    world.store.flatten(last.id)
    assert asked == [False]


@pytest.mark.parametrize("name", ["state", "memory", "memory.header", "disk.qcow2"])
def test_a_changed_byte_is_found(world: World, name: str) -> None:
    build = world.capture(world.base, {1: page(77)})
    world.store.verify(build.id)
    path = build.directory / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(Unavailable, match=f"{name} is not what was written") as caught:
        world.store.verify(build.id)
    assert caught.value.slug == "build_broken"


def test_missing_files_and_missing_ground_are_found(world: World) -> None:
    one, two = world.chain(2)
    (two.directory / "state").unlink()
    with pytest.raises(Unavailable, match="state is gone"):
        world.store.verify(two.id)
    (world.catalog.bases / "base-key" / "disk.qcow2").unlink()
    with pytest.raises(Unavailable, match="below its disk is gone"):
        world.store.verify(one.id)


def test_a_wrong_flat_file_is_found(world: World) -> None:
    build = world.chain(2)[-1]
    flat = world.store.materialise(build.id)
    world.store.verify(build.id)
    flat.chmod(0o600)
    with flat.open("r+b") as file:
        file.seek((PAGES - 1) * PAGE)
        file.write(b"x")
    with pytest.raises(Unavailable, match=r"memory\.flat is not its memory"):
        world.store.verify(build.id)


def test_a_base_template_can_be_verified_as_far_as_it_goes(world: World) -> None:
    world.store.verify(world.base)
    (world.catalog.bases / "base-key" / "memory").unlink()
    with pytest.raises(Unavailable, match="memory is gone"):
        world.store.verify(world.base)


def test_runnable_means_what_compatibility_says(world: World) -> None:
    build = world.capture(world.base, {1: page(77)})
    with pytest.raises(Conflict) as caught:
        world.store.require_runnable(build, build.manifest.platform, 0)  # only the root file system is there
    assert caught.value.slug == "build_incompatible"


@pytest.mark.parametrize("name", ["state", "memory", "memory.header", "disk.qcow2"])
def test_a_build_that_has_lost_a_file_is_not_runnable(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "require_runnable", lambda *_: None)
    build = world.capture(world.base, {1: page(77)})
    above = world.capture(build.id, {2: page(78)})
    for each in (build, above):
        world.store.require_runnable(each, each.manifest.platform, 0)
    (build.directory / name).unlink()
    with pytest.raises(Unavailable, match=rf"{name} is gone") as caught:
        world.store.require_runnable(build, build.manifest.platform, 0)
    assert caught.value.slug == "build_broken"
    if name == "disk.qcow2":  # those above need it, too
        with pytest.raises(Unavailable, match="is broken"):
            world.store.require_runnable(above, above.manifest.platform, 0)


def test_sizes_are_what_is_allocated(world: World) -> None:
    build = world.capture(world.base, {n: page(n) for n in range(1, 21)})
    before = build.size_bytes
    assert 20 * PAGE <= before < SIZE
    world.store.materialise(build.id)
    assert world.store.get(build.id).size_bytes > before
