from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.vmm import probe
from wrenn_sandbox.vmm.driver import Exit
from wrenn_sandbox.vmm.probe import Attempt
from wrenn_sandbox.vmm.qemu import trial
from wrenn_sandbox.vmm.qemu.driver import QemuDriver
from wrenn_sandbox.vmm.qemu.machine import QemuMachine

ARTEFACTS = ArtefactSet("r", "k", "6.1", "i", "t", "f")


class _Machine:
    """Says things, then ends."""

    def __init__(self, *says: str) -> None:
        self._says = iter(says)
        self.console = next(self._says)

    async def wait(self) -> Exit:
        try:
            self.console += next(self._says)
        except StopIteration:
            return Exit(0, "The guest shut down or rebooted.")
        return await asyncio.Event().wait()  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_LOOK_EVERY_S", 0.001)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ((trial.MARKER,), ""),
        (("", "SeaBIOS", trial.MARKER), ""),
        (("", 'Command line: echo "wrenn-guest-$((6 * 7))-runs"'), "The guest shut down or rebooted."),
    ],
)
def test_only_what_running_code_can_know_counts(says: tuple[str, ...], reason: str) -> None:
    assert asyncio.run(trial._outcome(cast(QemuMachine, _Machine(*says)))) == reason


def test_the_marker_is_nowhere_in_what_the_guest_is_given() -> None:
    assert trial.MARKER.encode() not in trial._FIRST_PROGRAM


def test_the_trial_guest_is_the_real_one_with_another_first_program(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "images")
    initramfs = catalog.initramfs("i")
    initramfs.parent.mkdir(parents=True)
    initramfs.write_bytes(b"070701-real!")
    (tmp_path / "scratch").mkdir()
    spec = trial._spec(tmp_path / "scratch", catalog, ARTEFACTS, QemuDriver("kvm", "EPYC,enforce"))
    packed = spec.files.initramfs.read_bytes()
    assert packed.startswith(b"070701-real!070701")
    assert trial._FIRST_PROGRAM in packed
    assert (spec.files.kernel, spec.files.runtime) == (catalog.kernel("k"), catalog.runtime("r"))
    assert "rdinit=/wrenn-trial" in spec.platform.kernel_cmdline.split()
    assert spec.tap_fd is None


def _attempts(monkeypatch: pytest.MonkeyPatch, results: dict[str, tuple[bool, float]]) -> list[str]:
    tried: list[str] = []

    async def attempted(_: Catalog, __: ArtefactSet, accelerator: str, model: str) -> Attempt:
        tried.append(model)
        booted, took_s = results.get(model, (False, 0.1))
        return Attempt(accelerator, model, booted, "", took_s)

    async def main() -> None:
        attempts: AsyncIterator[Attempt] = trial.kvm_attempts(Catalog(Path("/i")), ARTEFACTS)
        async for _ in attempts:
            pass

    monkeypatch.setattr(trial, "attempted", attempted)
    monkeypatch.setattr(trial.cpu, "models", lambda _: ("best", "good", "least"))
    asyncio.run(main())
    return tried


def test_refused_models_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "KVM_DEVICE", tmp_path)
    assert _attempts(monkeypatch, {"good": (True, 0.5)}) == ["best", "good"]


def test_a_guest_that_hangs_ends_the_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "KVM_DEVICE", tmp_path)
    assert _attempts(monkeypatch, {"best": (False, trial.BOOT_LIMIT_S)}) == ["best"]


def test_no_device_no_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "KVM_DEVICE", tmp_path / "none")
    assert _attempts(monkeypatch, {}) == []
