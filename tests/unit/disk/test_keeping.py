from __future__ import annotations

import os
import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.unit.disk.world import ARTEFACTS, World, page
from wrenn_sandbox.core.errors import Exhausted, Invalid, NotFound, Unavailable
from wrenn_sandbox.disk import durability, keeping

SANDBOX, OTHER, TEMPLATE = f"sb-{uuid4()}", f"sb-{uuid4()}", f"tpl-{uuid4()}"


def _ids(world: World) -> set[UUID]:
    return {build.id for build in world.store.all()}


def test_a_hold_is_there_for_the_next_agent(world: World) -> None:
    one, two = world.chain(2)
    world.store.hold(SANDBOX, one.id)
    world.store.hold(TEMPLATE, one.id)
    world.store.hold(SANDBOX, two.id)
    assert world.reopened().held() == {SANDBOX: two.id, TEMPLATE: one.id}
    world.store.release(TEMPLATE)
    world.store.release(TEMPLATE)
    assert world.reopened().held() == {SANDBOX: two.id}


def test_only_what_is_there_can_be_held_and_only_by_who_may(world: World) -> None:
    with pytest.raises(NotFound):
        world.store.hold(SANDBOX, uuid4())
    with pytest.raises(Invalid):
        world.store.hold("../x", world.base)
    assert world.store.held() == {}


def test_a_hold_that_cannot_be_read_hides_no_other_and_keeps_everything(world: World) -> None:
    one, two = world.chain(2)
    world.store.hold(SANDBOX, one.id)
    (world.root / "data" / "holds" / OTHER).write_text("not a build")
    assert world.store.held() == {SANDBOX: one.id} and world.store.held_by(SANDBOX) == one.id
    for unknown in (lambda: world.store.held_by(OTHER), world.store.collect, world.store.needed_bases):
        with pytest.raises(Unavailable) as caught:
            unknown()
        assert caught.value.slug == "hold_broken"
    assert _ids(world) == {one.id, two.id}


def test_the_disk_of_a_build_is_known_by_its_file(world: World, tmp_path: Path) -> None:
    one, two = world.chain(2)
    overlay = tmp_path / "overlay"
    overlay.hardlink_to(one.disk)
    (one.directory / "manifest.json").write_text("broken")
    assert world.store.is_disk_of(overlay, one.id)
    assert not world.store.is_disk_of(overlay, two.id)
    assert not world.store.is_disk_of(overlay, uuid4())
    assert not world.store.is_disk_of(tmp_path / "none", one.id)


def test_a_full_disk_leaves_the_hold_as_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = world.chain(2)
    world.store.hold(SANDBOX, one.id)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exhausted):
        world.store.hold(SANDBOX, two.id)
    assert world.store.held() == {SANDBOX: one.id}


def test_what_nobody_needs_goes_with_all_its_files(world: World) -> None:
    one, two, three = world.chain(3)
    world.store.hold(SANDBOX, two.id)
    assert world.store.collect() == (three.id,)
    assert world.names() == {str(one.id), str(two.id)}
    world.store.release(SANDBOX)
    assert world.store.collect(in_use=[one.id]) == (two.id,)
    assert world.store.collect() == (one.id,)
    assert world.names() == set()
    assert world.restored(world.store.get(world.base)) == world.memories[world.base]


def test_a_running_sandbox_keeps_its_parent_and_its_ram_file(world: World) -> None:
    one, two = world.chain(2)
    flat = world.store.materialise(two.id)
    assert world.store.collect(mapped=[flat]) == ()
    assert world.store.collect(mapped=[world.catalog.bases / "base-key" / "memory"], in_use=[one.id]) == (two.id,)


def test_a_parent_all_of_whose_pages_were_rewritten_is_not_needed_for_memory(world: World) -> None:
    one = world.capture(world.base, {n: page(n) for n in range(256)})
    two = world.capture(one.id, {n: page(n + 500) for n in range(256)})
    world.store.hold(SANDBOX, two.id)
    assert two.header.builds() == {two.id}
    assert world.store.collect() == ()  # its disk is still below
    assert world.store.needed_bases() == {"base-key"}
    assert world.restored(two) == world.memories[two.id]


def test_a_draft_keeps_what_it_is_made_from_and_what_it_becomes(world: World) -> None:
    parent = world.capture(world.base, {1: page(1)})
    with world.store.draft(uuid4(), parent.id) as draft:
        assert world.store.collect() == ()
        world.fill(draft, parent, {2: page(2)})
        build = world.store.publish(draft, world.manifest(draft.build_id, parent))
        assert world.store.collect() == ()  # published and not held yet
        world.store.hold(SANDBOX, build.id)
    assert world.store.collect() == ()
    assert _ids(world) == {parent.id, build.id}


def test_a_pinned_build_stays_with_all_that_was_below_it(world: World) -> None:
    one, two = world.chain(2)
    with world.store.pinned(two.id) as build:
        assert world.store.collect() == ()
        assert world.restored(build) == world.memories[two.id]
    assert set(world.store.collect()) == {one.id, two.id}


def test_nothing_is_removed_while_the_needs_of_a_living_build_are_unknown(world: World) -> None:
    one, two, three = world.chain(3)
    world.store.hold(SANDBOX, two.id)
    header = two.directory / "memory.header"
    header.chmod(0o600)
    header.write_bytes(header.read_bytes()[:-1])
    store = world.reopened()
    assert store.collect() == ()
    assert world.names() == {str(b.id) for b in (one, two, three)}
    assert store.needed_bases() == {"base-key"}
    with pytest.raises(Unavailable):
        store.needed_artefacts()
    store.release(SANDBOX)
    assert len(store.collect()) == 3  # nobody needs the broken one


def test_nothing_is_removed_while_a_hold_cannot_be_read(world: World, tmp_path: Path) -> None:
    build = world.capture(world.base, {1: page(1)})
    world.store.hold(SANDBOX, build.id)
    (tmp_path / "data" / "holds" / SANDBOX).write_text("?")
    with pytest.raises(Unavailable) as caught:
        world.store.collect()
    assert caught.value.slug == "hold_broken"
    assert _ids(world) == {build.id}


def test_a_holder_of_a_build_that_is_gone_hinders_nobody(world: World) -> None:
    one, two = world.chain(2)
    world.store.hold(SANDBOX, two.id)
    for path in two.directory.iterdir():
        path.unlink()
    two.directory.rmdir()
    assert world.store.collect() == (one.id,)


def test_a_hold_and_a_collection_at_once_end_with_the_build_kept_or_refused(world: World) -> None:
    for _ in range(30):
        build = world.capture(world.base, {1: page(1)})
        begin, refused = threading.Barrier(2), []

        def hold(build_id: UUID = build.id, begin: threading.Barrier = begin, refused: list[int] = refused) -> None:
            begin.wait()
            try:
                world.store.hold(SANDBOX, build_id)
            except NotFound:
                refused.append(1)

        thread = threading.Thread(target=hold)
        thread.start()
        begin.wait()
        removed = world.store.collect()
        thread.join()
        assert (build.id in removed) == bool(refused)
        assert refused or world.restored(world.store.get(build.id)) == world.memories[build.id]
        world.store.release(SANDBOX)
        world.store.collect()


def test_the_sweep_takes_rubbish_and_leaves_who_is_at_work(world: World, tmp_path: Path) -> None:
    build = world.capture(world.base, {1: page(1)})
    for end in (durability.NEW, durability.WORK, durability.OLD):
        (world.builds / f".{uuid4()}{end}").mkdir()
    (tmp_path / "data" / "holds" / f".{SANDBOX}.new").touch()
    with world.store.draft(uuid4()) as draft:
        assert world.store.sweep() == 4
        assert world.names() == {str(build.id), draft.directory.name}
    assert world.reopened().sweep() == 0


def test_a_removal_that_was_cut_off_is_finished_by_the_sweep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.chain(2)
    with monkeypatch.context() as patched:
        patched.setattr(durability, "remove_asides", lambda *_: 0)
        world.store.collect()
    assert all(name.endswith(".old") for name in world.names())
    store = world.reopened()
    assert store.all() == ()
    assert store.sweep() == 2
    assert world.names() == set()


def test_bases_and_artefacts_that_living_builds_need_are_known(world: World) -> None:
    world.add_base("unused", prefix="bld-")
    build = world.capture(world.base, {1: page(1)})
    assert world.store.needed_bases() == frozenset()
    assert world.store.needed_bases(in_use=[build.id]) == {"base-key"}
    world.store.hold(SANDBOX, build.id)
    assert world.store.needed_bases() == {"base-key"}
    assert world.store.needed_artefacts() == {ARTEFACTS}


def test_the_folders_are_their_owners_alone(tmp_path: Path, world: World) -> None:
    for name in (keeping.BUILDS, keeping.HOLDS):
        assert (tmp_path / "data" / name).stat().st_mode & 0o777 == 0o700
