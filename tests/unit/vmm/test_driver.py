from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError

import pytest

from tests.unit.vmm.specs import SPEC
from wrenn_sandbox.vmm import driver
from wrenn_sandbox.vmm.fake import FakeDriver, FakeMachine
from wrenn_sandbox.vmm.qemu.driver import QemuDriver
from wrenn_sandbox.vmm.qemu.machine import QemuMachine


def _signatures(cls: type) -> dict[str, list[str]]:
    public = {name: member for name, member in vars(cls).items() if not name.startswith("_")}
    return {
        name: list(inspect.signature(member).parameters) if callable(member) else ["property"]
        for name, member in public.items()
    }


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [
        (driver.Driver, FakeDriver),
        (driver.Driver, QemuDriver),
        (driver.Machine, FakeMachine),
        (driver.Machine, QemuMachine),
    ],
)
def test_every_driver_has_every_call(protocol: type, kind: type) -> None:
    assert _signatures(protocol).items() <= _signatures(kind).items()


def test_a_machine_to_be_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        SPEC.uid = 0  # type: ignore[misc]
