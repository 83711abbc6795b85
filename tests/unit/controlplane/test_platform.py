from __future__ import annotations

from datetime import UTC

from wrenn_sandbox.controlplane.platform import KEY_CACHE_S, ROW_CACHE_S, now


def test_moments_are_utc_and_caches_short() -> None:
    assert now().tzinfo is UTC
    assert KEY_CACHE_S <= 5 and ROW_CACHE_S <= 1
