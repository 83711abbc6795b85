"""The guest kernel: Debian's cloud kernel, unpacked, with its module tree.

::

    kernels/<digest>/vmlinuz
                     release              e.g. 6.1.0-56-cloud-amd64
                     modules/<release>/   as below /lib/modules, only what a sandbox can use
"""

from __future__ import annotations

import shutil
from pathlib import Path

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.debian import GuestApt, unpack
from wrenn_sandbox.image.recipe import Product, Recipe, code, fingerprint
from wrenn_sandbox.image.store import tree_digest

PACKAGE = "linux-image-cloud-amd64"
#: Drivers of hardware that our machines never have make up half of the tree; these folders of drivers/ stay.
_DRIVERS_KEPT = frozenset({"block", "char", "md", "net", "ptp", "vhost", "virtio"})
_NET_DRIVERS_DROPPED = frozenset({"ethernet", "fjes", "hyperv", "phy", "vmxnet3", "wwan", "xen-netback"})


def recipe(apt: GuestApt) -> Recipe:
    """How the kernel is made."""

    async def make(scratch: Path) -> Product:
        return await _make(apt, scratch)

    return Recipe(
        name="kernel",
        kind="kernels",
        doing=f"downloading and unpacking {PACKAGE}",
        key=fingerprint(PACKAGE, code(__file__)),
        packages=(PACKAGE,),
        make=make,
    )


async def _make(apt: GuestApt, scratch: Path) -> Product:
    real = [name for name in await apt.depends(PACKAGE) if name.startswith("linux-image-")]
    if len(real) != 1:
        raise Unavailable(
            f"{PACKAGE} should depend on exactly one kernel, not {real}: look at the mirror.", slug="image_build_failed"
        )
    await unpack(await apt.download(real, closure=False), scratch / "package")
    release = real[0].removeprefix("linux-image-")
    product = scratch / "product"
    product.mkdir()
    shutil.copyfile(scratch / "package" / "boot" / f"vmlinuz-{release}", product / "vmlinuz")
    (product / "release").write_text(release + "\n")
    modules = product / "modules" / release
    modules.parent.mkdir()
    (scratch / "package" / "lib" / "modules" / release).rename(modules)
    _trim(modules)
    return Product(product, tree_digest(product), {"release": release})


def _trim(modules: Path) -> None:
    """Drop what no sandbox can use, and links into folders that were not unpacked."""
    drivers = modules / "kernel" / "drivers"
    unused = [folder for folder in drivers.iterdir() if folder.name not in _DRIVERS_KEPT]
    unused += [drivers / "net" / name for name in _NET_DRIVERS_DROPPED]
    unused.append(modules / "kernel" / "arch" / "x86" / "kvm")
    for folder in unused:
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("build", "source"):
        (modules / name).unlink(missing_ok=True)
