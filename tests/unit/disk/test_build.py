from __future__ import annotations

import shutil
from pathlib import Path
from uuid import uuid4

import pytest

from tests.unit.disk.world import PAGES, SIZE, World, page
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.disk import build as builds
from wrenn_sandbox.vmm.driver import Patch


def test_a_restore_maps_the_base_and_writes_what_differs(world: World) -> None:
    build = world.capture(world.base, {1: page(77), 2: page(78), 9: bytes(PAGE)})
    flat, patches = build.restore_plan()
    assert flat == world.catalog.bases / "base-key" / "memory"
    assert patches == (Patch(PAGE, 2 * PAGE, build.memory, 0), Patch(9 * PAGE, PAGE, None))


def test_a_base_template_is_restored_as_it_is(world: World) -> None:
    base = world.store.get(world.base)
    assert base.restore_plan() == (base.directory / "memory", ())
    assert builds.packed_bytes(base) == SIZE
    assert world.memory(base) == world.memories[world.base]


@pytest.mark.parametrize("materialised", [(), (0,), (2,), (1, 4), (5,)])
def test_any_plan_gives_the_same_memory(world: World, materialised: tuple[int, ...]) -> None:
    chain = world.chain(6)
    for number in materialised:
        world.store.materialise(chain[number].id)
    for build in world.store.all():
        assert world.restored(build) == world.memories[build.id]
    if materialised:
        nearest = chain[max(materialised)].directory / builds.FLAT_MEMORY
        assert world.store.get(chain[-1].id).restore_plan()[0] == nearest


def test_the_disk_is_a_chain_down_to_the_root_file_system(world: World) -> None:
    one, two = world.chain(2)
    base = world.store.get(world.base)
    assert two.disk_layers() == (two.disk, one.disk, base.disk, world.catalog.rootfs("rootfs"))
    assert base.disk_layers() == (base.disk, world.catalog.rootfs("rootfs"))


def test_only_the_nearest_disk_of_a_chain_is_believed(world: World) -> None:
    one, two = world.chain(2)
    manifest = builds.read_manifest(two.directory)
    stale = manifest.from_json(manifest.to_json() | {"disk_chain": [str(one.id), str(uuid4())]})
    (two.directory / builds.MANIFEST).write_bytes(builds.encoded(stale))
    assert world.store.get(two.id).disk_layers() == two.disk_layers()


def test_without_what_is_below_a_build_is_broken(world: World) -> None:
    one, two = world.chain(2)
    shutil.rmtree(one.directory)
    again = world.store.get(two.id)
    for read in (again.files, again.source, again.restore_plan):
        with pytest.raises(Unavailable) as caught:
            read()
        assert caught.value.slug == "build_broken"


def test_without_any_flat_file_a_build_is_broken(world: World) -> None:
    one = world.capture(world.base, {n: page(n) for n in range(PAGES)})
    assert one.restore_plan()[0].exists()
    shutil.rmtree(world.catalog.bases / "base-key")
    with pytest.raises(Unavailable, match="no RAM file is left"):
        world.store.get(one.id).restore_plan()
    assert world.memory(world.store.get(one.id)) == world.memories[one.id]  # its pages are all its own


def test_manifests_are_read_as_they_were_written(world: World, tmp_path: Path) -> None:
    build = world.capture(world.base, {1: page(1)})
    assert builds.read_manifest(build.directory) == build.manifest
    assert builds.named_files(build.manifest) == ("state", "memory", "memory.header", "disk.qcow2")
    assert builds.named_files(world.store.get(world.base).manifest) == ("state", "memory", "disk.qcow2")
    with pytest.raises(NotFound):
        builds.read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{}", b'{"shape": 1, "artefacts": {}, "platform": {}}'])
def test_a_manifest_that_is_none_is_broken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / builds.MANIFEST).write_bytes(content)
    with pytest.raises(Unavailable) as caught:
        builds.read_manifest(tmp_path)
    assert caught.value.slug == "build_broken"


def test_ids_are_plain_or_prefixed() -> None:
    build_id = uuid4()
    assert builds.parse_id(str(build_id)) == builds.parse_id(f"bld-{build_id}") == build_id
    with pytest.raises(Unavailable):
        builds.parse_id("base")
