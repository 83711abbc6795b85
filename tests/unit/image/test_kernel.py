from pathlib import Path

from wrenn_sandbox.image.debian import GuestApt, Mirror
from wrenn_sandbox.image.kernel import PACKAGE, _trim, recipe


def test_only_modules_a_sandbox_can_use_stay(tmp_path: Path) -> None:
    kept = ["fs/fuse/fuse.ko", "drivers/net/veth.ko", "drivers/virtio/virtio.ko", "arch/x86/crypto/aesni-intel.ko"]
    dropped = ["drivers/infiniband/core/ib_core.ko", "drivers/net/ethernet/ena.ko", "arch/x86/kvm/kvm.ko"]
    for name in (*kept, *dropped):
        path = tmp_path / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "build").symlink_to("/usr/src/nowhere")
    _trim(tmp_path)
    assert sorted(str(p.relative_to(tmp_path / "kernel")) for p in tmp_path.rglob("*.ko")) == sorted(kept)
    assert not (tmp_path / "build").is_symlink()


def test_newer_kernels_are_looked_for_by_the_metapackage(tmp_path: Path) -> None:
    made = recipe(GuestApt(tmp_path, Mirror("http://m.example/", "")))
    assert (made.name, made.kind, made.packages) == ("kernel", "kernels", (PACKAGE,))
