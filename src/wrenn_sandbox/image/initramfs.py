"""The initramfs: busybox, the modules that make disks and network appear, and the init script that hands over.

It is an uncompressed cpio archive (docs/decisions/guest-artefacts.md): a few MB that QEMU copies in one go, which is
cheaper than inflating it on an emulated CPU.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from wrenn_sandbox.image.debian import GuestApt, unpack
from wrenn_sandbox.image.recipe import Product, Recipe, Sources, code, fingerprint
from wrenn_sandbox.image.store import file_digest

#: Loaded in this order, each after what it depends on. What the kernel has built in, or has not, is passed over.
MODULES = (
    "virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net",
    "virtio_rng", "squashfs", "loop", "overlay", "fuse", "ptp_kvm",
)  # fmt: skip

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")  # one string of the .modinfo section
_MOUNT_POINTS = ("dev", "proc", "sys", "newroot")
_S_IFREG, _S_IFDIR, _S_IFCHR = 0o100000, 0o040000, 0o020000


def recipe(apt: GuestApt, sources: Sources, kernel: Path, kernel_digest: str) -> Recipe:
    """How the initramfs is made; ``kernel`` is the published folder of the kernel."""
    script = sources.guest / "initramfs-init.sh"

    async def make(scratch: Path) -> Product:
        (busybox_package,) = await apt.download(["busybox-static"], closure=False)
        await unpack([busybox_package], scratch / "busybox")
        files = {"bin/busybox": (scratch / "busybox" / "bin" / "busybox").read_bytes(), "init": script.read_bytes()}
        tree = next((kernel / "modules").iterdir())
        order = load_order(index(tree))
        for path in order:
            files[f"modules/{path.name}"] = path.read_bytes()
        files["modules/order"] = "".join(f"{path.name}\n" for path in order).encode()
        product = scratch / "product"
        product.mkdir()
        (product / "initramfs").write_bytes(archive(files))
        shutil.rmtree(scratch / "busybox")
        return Product(product, file_digest(product / "initramfs"))

    return Recipe(
        name="initramfs",
        kind="initramfs",
        doing="packing busybox and modules",
        key=fingerprint(kernel_digest, script, code(__file__)),
        packages=("busybox-static",),
        make=make,
    )


def index(modules: Path) -> dict[str, Path]:
    """Every module below a module tree, by the name the kernel knows it by."""
    return {path.stem.replace("-", "_"): path for path in modules.rglob("*.ko")}


def load_order(modules: Mapping[str, Path]) -> list[Path]:
    """The files to load, dependencies first."""
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = modules.get(name.replace("-", "_"))
        if path is None or path in ordered:
            return
        for dependency in dependencies(path.read_bytes()):
            add(dependency)
        ordered.append(path)

    for name in MODULES:
        add(name)
    return ordered


def dependencies(module: bytes) -> tuple[str, ...]:
    """Names in the ``depends=`` string of a module's .modinfo section."""
    found = _DEPENDS.search(module)
    return tuple(found.group(1).decode().split(",")) if found and found.group(1) else ()


def archive(files: Mapping[str, bytes]) -> bytes:
    """A cpio archive in the newc format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

    All files are executable and owned by root; parents are made; /dev/console is there for the kernel to open.
    """
    parents = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    folder = (_S_IFDIR | 0o755, b"", (0, 0))
    entries: dict[str, tuple[int, bytes, tuple[int, int]]] = dict.fromkeys((*parents, *_MOUNT_POINTS), folder)
    entries["dev/console"] = (_S_IFCHR | 0o600, b"", (5, 1))
    entries.update({name: (_S_IFREG | 0o755, data, (0, 0)) for name, data in files.items()})
    packed = bytearray()
    for number, name in enumerate(sorted(entries), start=1):
        mode, data, device = entries[name]
        for piece in _entry(number, name, mode, data, device):
            packed += piece
    for piece in _entry(0, "TRAILER!!!", 0, b"", (0, 0)):
        packed += piece
    return bytes(packed)


def _entry(number: int, name: str, mode: int, data: bytes, device: tuple[int, int]) -> Iterator[bytes]:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    yield header + b"\0" * (-len(header) % 4)
    yield data + b"\0" * (-len(data) % 4)
