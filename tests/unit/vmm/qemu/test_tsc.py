from __future__ import annotations

import pytest

from wrenn_sandbox.vmm.qemu import tsc


def test_the_rate_is_counts_for_each_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [1_000_000_000]
    monkeypatch.setattr(tsc.time, "monotonic_ns", lambda: now_ns[0])
    monkeypatch.setattr(tsc.time, "sleep", lambda s: now_ns.__setitem__(0, now_ns[0] + round(s * 1e9)))
    monkeypatch.setattr(tsc, "_reader", lambda: lambda: round(now_ns[0] * 2.596134))
    tsc.host_tsc_khz.cache_clear()
    try:
        assert tsc.host_tsc_khz() == 2_596_134
    finally:
        tsc.host_tsc_khz.cache_clear()


def test_of_several_looks_the_least_disturbed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 900, 1000, 1010, 2000, 2900, 3000, 3900, 4000, 4900])
    monkeypatch.setattr(tsc.time, "monotonic_ns", lambda: next(clock))
    counts = iter([10, 20, 30, 40, 50])
    assert tsc._reading(lambda: next(counts)) == (20, 1005)


def test_another_architecture_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsc.platform, "machine", lambda: "aarch64")
    assert tsc._reader() is None
