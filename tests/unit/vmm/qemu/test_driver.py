from __future__ import annotations

import pytest

from wrenn_sandbox.vmm.driver import Driver
from wrenn_sandbox.vmm.qemu.driver import QemuDriver


@pytest.mark.parametrize(("accelerator", "fast"), [("tcg", False), ("kvm", True)])
def test_capabilities_name_the_accelerator(accelerator: str, fast: bool) -> None:
    driver: Driver = QemuDriver(accelerator, "model")
    assert driver.capabilities.driver == "qemu"
    assert driver.capabilities.accelerator == accelerator
    assert driver.capabilities.accelerated is fast


def test_the_platform_is_the_same_at_every_call() -> None:
    driver = QemuDriver("tcg", "max")
    platform = driver.platform("quiet extra=1")
    assert platform == driver.platform("quiet extra=1")  # it keys the base templates
    assert (platform.driver, platform.machine, platform.cpu_model) == ("qemu", "microvm", "max")
    assert platform.kernel_cmdline.endswith("tsc=reliable extra=1")
