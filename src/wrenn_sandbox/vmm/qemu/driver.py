"""QEMU as a driver: what it can do on this host, and the platform of new templates."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from wrenn_sandbox.core.artefacts import Platform
from wrenn_sandbox.core.spec import MEMORY_MIB_CHOICES, VCPU_CHOICES
from wrenn_sandbox.vmm.driver import Capabilities, MachineSpec
from wrenn_sandbox.vmm.qemu import argv, machine, tsc
from wrenn_sandbox.vmm.qemu.machine import QemuMachine


class QemuDriver:
    """Jailed QEMU machines under ``accelerator`` (``tcg`` or ``kvm``), new templates with ``cpu_model``."""

    def __init__(self, accelerator: str, cpu_model: str) -> None:
        self._cpu_model = cpu_model
        self._capabilities = Capabilities(
            driver="qemu",
            accelerator=accelerator,
            accelerated=accelerator == "kvm",
            max_vcpus=max(VCPU_CHOICES),
            max_memory_mib=max(MEMORY_MIB_CHOICES),
        )

    @property
    def capabilities(self) -> Capabilities:
        """What it can do here."""
        return self._capabilities

    def platform(self, kernel_cmdline: str) -> Platform:
        """The virtual hardware of new templates; the words this machine's kernel needs are added."""
        accelerator = self._capabilities.accelerator
        words = argv.cmdline(accelerator, kernel_cmdline)
        return Platform("qemu", accelerator, argv.MACHINE, self._cpu_model, words)

    def tsc_khz(self) -> int:
        """The host's rate under TCG; see ``vmm.driver``."""
        return (tsc.host_tsc_khz() or 0) if self._capabilities.accelerator == "tcg" else 0

    def boot(self, spec: MachineSpec) -> AbstractAsyncContextManager[QemuMachine]:
        """Cold boot; see ``vmm.driver``."""
        return machine.booted(spec)

    def restore(self, spec: MachineSpec, state: Path) -> AbstractAsyncContextManager[QemuMachine]:
        """Restore; see ``vmm.driver``."""
        return machine.restored(spec, state)

    def adopt(self, spec: MachineSpec, pid: int) -> AbstractAsyncContextManager[QemuMachine]:
        """Adopt; see ``vmm.driver``."""
        return machine.adopted(spec, pid)
