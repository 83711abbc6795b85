"""The trial guest boots where machines work, and the verdict on KVM is whatever a guest showed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.contract.drivers import IMAGES, traces
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.vmm.probe import KVM_DEVICE, Wanted
from wrenn_sandbox.vmm.qemu import trial

pytestmark = [pytest.mark.machine, pytest.mark.skipif(os.geteuid() != 0, reason="a jail needs root")]


def test_a_guest_under_tcg_shows_that_it_runs() -> None:
    catalog = Catalog(IMAGES)
    before = traces()
    attempt = asyncio.run(trial.attempted(catalog, catalog.current(), "tcg", "max", limit_s=90))
    assert attempt.booted, attempt.reason
    assert traces() - before == set()


def test_a_guest_that_says_nothing_does_not_count() -> None:
    catalog = Catalog(IMAGES)
    attempt = asyncio.run(trial.attempted(catalog, catalog.current(), "tcg", "max", limit_s=0.3))
    assert not attempt.booted
    assert "within 0.3 s" in attempt.reason


def test_the_verdict_on_kvm_rests_on_a_guest_and_is_kept(tmp_path: Path) -> None:
    catalog, cache = Catalog(IMAGES), tmp_path / "verdict.json"
    verdict = asyncio.run(trial.choose(catalog, cache))
    assert (verdict.accelerator == "kvm") == any(attempt.booted for attempt in verdict.tried)
    assert bool(verdict.tried) == KVM_DEVICE.exists()
    assert verdict.reason
    again = asyncio.run(trial.choose(catalog, cache))
    assert again.cached
    assert (again.accelerator, again.cpu_model, again.tried) == (verdict.accelerator, verdict.cpu_model, verdict.tried)
    if verdict.accelerator != "kvm":
        with pytest.raises(Unavailable) as caught:
            asyncio.run(trial.choose(catalog, cache, Wanted.KVM))
        assert caught.value.slug == "kvm_unusable"
