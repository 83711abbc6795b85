from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.vmm import probe
from wrenn_sandbox.vmm.probe import Attempt, Fallback, Trial, Verdict, Wanted, choose

TCG = Fallback("tcg", "max")
REFUSED = Attempt("kvm", "EPYC,enforce", False, "QEMU failed.", 0.1)
HUNG = Attempt("kvm", "qemu64", False, "It hangs.", 10.0)
BOOTED = Attempt("kvm", "EPYC-Rome,enforce", True, "", 0.7)


def _trial(*attempts: Attempt) -> tuple[Trial, list[Attempt]]:
    made: list[Attempt] = []

    async def trial() -> AsyncIterator[Attempt]:
        for attempt in attempts:
            made.append(attempt)
            yield attempt

    return trial, made


def _choose(cache: Path, trial: Trial, wanted: Wanted = Wanted.AUTO, key: str = "k") -> Verdict:
    return asyncio.run(choose(wanted, trial, TCG, cache, key))


def test_kvm_counts_when_a_guest_booted_and_no_further_model_is_tried(tmp_path: Path) -> None:
    trial, made = _trial(REFUSED, BOOTED, HUNG)
    verdict = _choose(tmp_path / "v", trial)
    assert (verdict.accelerator, verdict.cpu_model) == ("kvm", "EPYC-Rome,enforce")
    assert verdict.tried == (REFUSED, BOOTED) == tuple(made)


def test_a_kvm_that_answers_and_boots_nothing_is_none(tmp_path: Path) -> None:
    verdict = _choose(tmp_path / "v", _trial(REFUSED, HUNG)[0])
    assert (verdict.accelerator, verdict.cpu_model, verdict.reason) == ("tcg", "max", "It hangs.")


def test_without_a_device_nothing_is_tried(tmp_path: Path) -> None:
    verdict = _choose(tmp_path / "v", _trial()[0])
    assert verdict.accelerator == "tcg"
    assert "/dev/kvm" in verdict.reason


def test_the_verdict_is_kept_until_its_key_changes(tmp_path: Path) -> None:
    first = _choose(tmp_path / "sub" / "v", _trial(BOOTED)[0])
    trial, made = _trial(HUNG)
    again = _choose(tmp_path / "sub" / "v", trial)
    assert (again.cached, again.tried, again.accelerator, made) == (True, first.tried, "kvm", [])
    assert _choose(tmp_path / "sub" / "v", trial, key="other").accelerator == "tcg"
    assert made == [HUNG]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "k"}', '{"key": "k", "verdict": {"tried": [{"x": 1}]}}'])
def test_a_spoilt_cache_is_no_cache(tmp_path: Path, content: str) -> None:
    (tmp_path / "v").write_text(content)
    assert _choose(tmp_path / "v", _trial(BOOTED)[0]).accelerator == "kvm"


def test_who_asks_for_tcg_waits_for_no_trial(tmp_path: Path) -> None:
    trial, made = _trial(BOOTED)
    assert _choose(tmp_path / "v", trial, Wanted.TCG).accelerator == "tcg"
    assert made == []


def test_who_insists_on_kvm_hears_why_not(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="It hangs") as caught:
        _choose(tmp_path / "v", _trial(HUNG)[0], Wanted.KVM)
    assert caught.value.slug == "kvm_unusable"


def test_the_key_follows_the_device_and_the_artefacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "KVM_DEVICE", tmp_path / "kvm")
    absent = probe.host_key(("a", "b"))
    assert absent == probe.host_key(("a", "b"))
    assert absent != probe.host_key(("a", "c"))
    (tmp_path / "kvm").touch()
    assert absent != probe.host_key(("a", "b"))
