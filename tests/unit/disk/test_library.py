from __future__ import annotations

import shutil
from uuid import UUID, uuid4

import pytest

from tests.unit.disk.world import World, page
from wrenn_sandbox.core.errors import NotFound
from wrenn_sandbox.disk import library as libraries
from wrenn_sandbox.disk.gc import Needs, flat_storage
from wrenn_sandbox.disk.library import Library, Needed


@pytest.fixture
def library(world: World) -> Library:
    return Library(world.builds, world.catalog)


def test_builds_and_base_templates_are_found_by_id(world: World, library: Library) -> None:
    build = world.capture(world.base, {1: page(1)})
    prefixed = world.add_base("other", prefix="bld-")
    assert library.build(build.id).directory == world.builds / str(build.id)
    assert library.build(world.base).directory == world.catalog.bases / "base-key"
    assert library.build(prefixed).id == prefixed
    assert library.own_ids() == [build.id]
    assert library.base_names() == {world.base: "base-key", prefixed: "other"}


def test_a_base_template_that_was_made_again_is_another(world: World, library: Library) -> None:
    assert library.build(world.base)
    shutil.rmtree(world.catalog.bases / "base-key")
    again = world.add_base("base-key")
    with pytest.raises(NotFound):
        library.build(world.base)
    assert library.build(again).id == again


def test_what_is_no_build_is_not_looked_at(world: World, library: Library) -> None:
    for name in ("notes", ".x.new", str(uuid4()).upper(), "{" + str(uuid4()) + "}"):
        (world.builds / name).mkdir()
    (world.catalog.bases / "half").mkdir()
    (world.catalog.bases / "old").mkdir()
    (world.catalog.bases / "old" / "manifest.json").write_text('{"version": 0}')
    assert library.own_ids() == []
    assert library.base_names() == {world.base: "base-key"}


def test_without_any_folder_there_is_nothing(world: World) -> None:
    library = Library(world.root / "none", libraries.Catalog(world.root / "none"))
    assert library.own_ids() == []
    assert library.base_names() == {}


def test_storages_are_files_of_pages(world: World, library: Library) -> None:
    build = world.capture(world.base, {1: page(1)})
    assert library.storage(build.id)[1] == build.directory / "memory"
    assert library.storage(world.base)[1] == world.catalog.bases / "base-key" / "memory"
    with pytest.raises(NotFound):
        library.storage(flat_storage(build.id))
    flat = world.store.materialise(build.id)
    assert library.storage(flat_storage(build.id))[1] == flat
    (build.directory / "memory").unlink()
    with pytest.raises(NotFound):
        library.storage(build.id)


def test_needs_are_the_memory_and_the_nearest_disk(world: World, library: Library) -> None:
    one, two = world.chain(2)
    assert library.needs(two.id) == Needs(two.header.builds() | {world.base}, one.id)
    assert library.needs(world.base) == Needs(frozenset({world.base}), None)
    assert library.needs(UUID(int=5)).unknown


def test_needs_are_read_once_as_long_as_the_manifest_stays(
    world: World, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = world.capture(world.base, {1: page(1)})
    known = library.needs(build.id)
    with monkeypatch.context() as patched:
        patched.delattr(libraries, "_needs_of")
        assert library.needs(build.id) == known
    library.forget(build.id)
    (build.directory / "memory.header").unlink()
    assert library.needs(build.id).unknown


def test_needs_are_found_out_when_they_are_asked_for() -> None:
    asked = []

    def find(build_id: UUID) -> Needs:
        asked.append(build_id)
        return Needs()

    needed = Needed(frozenset({UUID(int=1), UUID(int=2)}), find)
    assert (len(needed), set(needed), UUID(int=1) in needed, UUID(int=3) in needed) == (2, needed.keys(), True, False)
    assert asked == []
    assert needed[UUID(int=1)] == Needs()
    with pytest.raises(KeyError):
        needed[UUID(int=3)]
    assert asked == [UUID(int=1)]
