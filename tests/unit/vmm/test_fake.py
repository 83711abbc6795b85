from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.vmm.specs import SPEC
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.vmm import fake
from wrenn_sandbox.vmm.driver import Driver
from wrenn_sandbox.vmm.fake import FakeDriver, envd_command


def test_it_plays_no_machine_that_it_is_not() -> None:
    driver: Driver = FakeDriver()
    assert driver.capabilities.driver == driver.platform("").driver == "fake"
    assert not driver.capabilities.accelerated
    assert driver.platform("a").kernel_cmdline == "a"


def test_envd_listens_where_the_guest_would() -> None:
    command = envd_command(replace(SPEC, host_ip="127.9.0.1"))
    assert command[1:] == ("-m", "wrenn_sandbox.envd", "--not-a-guest", "--host", "127.9.0.1", "--port", "49983")


@pytest.mark.parametrize("content", ["", "{}", '{"driver": "qemu"}', "\x00"])
def test_a_state_of_another_driver_is_refused_before_anything_starts(tmp_path: Path, content: str) -> None:
    state = tmp_path / "state"
    state.write_text(content)

    async def main() -> None:
        async with FakeDriver().restore(SPEC, state):
            pass

    with pytest.raises(Unavailable) as caught:
        asyncio.run(main())
    assert caught.value.slug == "vmm_failed"


def test_only_a_keeper_is_taken_for_one() -> None:
    with pytest.raises(NotFound) as caught:
        fake._keeper_of(os.getpid())
    assert caught.value.slug == "vmm_gone"
