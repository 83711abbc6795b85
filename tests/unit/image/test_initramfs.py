import re
from pathlib import Path

from wrenn_sandbox.image.initramfs import MODULES, archive, dependencies, index, load_order
from wrenn_sandbox.image.recipe import Sources


def _module(depends: str) -> bytes:
    return b"\x7fELF...license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"


def _tree(root: Path, modules: dict[str, str]) -> dict[str, Path]:
    for name, depends in modules.items():
        (root / f"{name}.ko").write_bytes(_module(depends))
    return index(root)


def test_dependencies_are_read_from_the_module() -> None:
    assert dependencies(_module("virtio,virtio_ring")) == ("virtio", "virtio_ring")
    assert dependencies(_module("")) == ()
    assert dependencies(b"no module") == ()


def test_dependencies_load_first_and_only_once(tmp_path: Path) -> None:
    modules = _tree(
        tmp_path, {"virtio_ring": "", "virtio": "virtio_ring", "overlay": "exotic-thing", "exotic-thing": ""}
    )
    assert [p.stem for p in load_order(modules)] == ["virtio_ring", "virtio", "exotic-thing", "overlay"]


def test_what_the_kernel_has_built_in_is_passed_over(tmp_path: Path) -> None:
    assert load_order(_tree(tmp_path, {"fuse": "builtin_thing"})) == [tmp_path / "fuse.ko"]


def test_disks_come_before_what_is_mounted_from_them() -> None:
    assert MODULES.index("virtio_mmio") < MODULES.index("virtio_blk") < MODULES.index("squashfs")


def test_the_archive_is_newc_with_parents_and_a_trailer() -> None:
    packed = archive({"init": b"#!x", "a/b/c": b"12345"})
    entries = _unpack(packed)
    assert entries["init"] == (0o100755, b"#!x")
    assert entries["a/b/c"] == (0o100755, b"12345")
    assert {"a", "a/b", "dev", "proc", "sys", "newroot", "dev/console"} <= set(entries)
    assert list(entries)[-1] == "TRAILER!!!"
    assert archive({"init": b"#!x", "a/b/c": b"12345"}) == packed


def test_the_init_script_starts_nothing_of_the_root_file_system_but_wrenn_init() -> None:
    script = (Sources.of_checkout().guest / "initramfs-init.sh").read_text()
    assert re.search(r"^exec /bin/busybox switch_root .* /run/wrenn/tools/sbin/wrenn-init$", script, re.MULTILINE)


def _unpack(packed: bytes) -> dict[str, tuple[int, bytes]]:
    entries, at = {}, 0
    while at < len(packed):
        assert packed[at : at + 6] == b"070701"
        fields = [int(packed[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_at = at + 110
        name = packed[name_at : name_at + fields[11] - 1].decode()
        data_at = (name_at + fields[11] + 3) // 4 * 4
        entries[name] = (fields[1], packed[data_at : data_at + fields[6]])
        at = (data_at + fields[6] + 3) // 4 * 4
    return entries
