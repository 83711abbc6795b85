from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wrenn_sandbox.core.artefacts import ArtefactSet, Manifest, Platform
from wrenn_sandbox.core.errors import Conflict
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.disk.compatibility import require_runnable
from wrenn_sandbox.image.catalog import Catalog

HERE = Platform("qemu", "tcg", "microvm", "qemu64", "console=ttyS0 quiet")
OLD = ArtefactSet("runtime1", "kernel1", "6.1", "initramfs1", "tools1", "rootfs1")


def _manifest(artefacts: ArtefactSet = OLD, platform: Platform = HERE, tsc_khz: int = 0) -> Manifest:
    return Manifest("id", "base", Shape(1, 256), artefacts, platform, 0.0, tsc_khz=tsc_khz)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path)
    for number in "12":
        catalog.runtime(f"runtime{number}").mkdir(parents=True)
        for path in (
            catalog.kernel(f"kernel{number}"),
            catalog.initramfs(f"initramfs{number}"),
            catalog.tools(f"tools{number}"),
            catalog.rootfs(f"rootfs{number}"),
        ):
            path.parent.mkdir(parents=True)
            path.touch()
    catalog.set_current(ArtefactSet("runtime2", "kernel2", "6.2", "initramfs2", "tools2", "rootfs2"))
    return catalog


def _reason(manifest: Manifest, catalog: Catalog, platform: Platform = HERE, tsc_khz: int = 0) -> str:
    with pytest.raises(Conflict) as caught:
        require_runnable(manifest, catalog, platform, tsc_khz)
    assert caught.value.slug == "build_incompatible"
    return caught.value.message


def test_an_old_build_runs_beside_newer_artefacts(catalog: Catalog) -> None:
    require_runnable(_manifest(), catalog, HERE, 0)
    require_runnable(_manifest(catalog.current()), catalog, HERE, 0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runtime", "the runtime gone is not there"),
        ("kernel", "the kernel gone is not there"),
        ("initramfs", "the initramfs gone is not there"),
        ("tools", "the tools disk gone is not there"),
        ("rootfs", "the root file system gone is not there"),
    ],
)
def test_what_is_missing_is_named(catalog: Catalog, name: str, said: str) -> None:
    assert said in _reason(_manifest(replace(OLD, **{name: "gone"})), catalog)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("driver", "driver 'qemu', and this host has 'other'"),
        ("accelerator", "accelerator 'tcg', and this host has 'other'"),
        ("machine", "machine 'microvm', and this host has 'other'"),
        ("cpu_model", "CPU model 'qemu64', and this host has 'other'"),
        ("kernel_cmdline", "kernel command line 'console=ttyS0 quiet', and this host has 'other'"),
    ],
)
def test_another_platform_is_refused(catalog: Catalog, name: str, said: str) -> None:
    assert said in _reason(_manifest(), catalog, replace(HERE, **{name: "other"}))


def test_every_reason_is_given_at_once(catalog: Catalog) -> None:
    said = _reason(_manifest(replace(OLD, runtime="gone", tools="gone")), catalog, replace(HERE, cpu_model="other"))
    assert "runtime" in said
    assert "tools" in said
    assert "CPU" in said


@pytest.mark.parametrize("here", [2_500_000 + 2_000, 2_400_000, 3_000_000])
def test_a_guest_under_tcg_needs_its_rate(catalog: Catalog, here: int) -> None:
    assert f"this host has {here} kHz" in _reason(_manifest(tsc_khz=2_500_000), catalog, tsc_khz=here)


@pytest.mark.parametrize(("made", "here"), [(0, 2_000_000), (2_500_000, 0), (2_500_000, 2_500_100), (0, 0)])
def test_an_unknown_rate_and_the_error_of_a_measurement_do_not_matter(catalog: Catalog, made: int, here: int) -> None:
    require_runnable(_manifest(tsc_khz=made), catalog, HERE, here)


def test_kvm_scales_the_rate_itself(catalog: Catalog) -> None:
    kvm = replace(HERE, accelerator="kvm")
    require_runnable(_manifest(platform=kvm, tsc_khz=2_500_000), catalog, kvm, 3_000_000)


def test_the_fake_vmm_needs_a_root_file_system_alone(catalog: Catalog) -> None:
    fake = Platform("fake", "none", "process", "host", "")
    require_runnable(_manifest(ArtefactSet("r", "k", "6.1", "i", "t", "rootfs1"), fake), catalog, fake, 0)
    assert "root file system" in _reason(_manifest(ArtefactSet("r", "k", "6.1", "i", "t", "x"), fake), catalog, fake)
