from __future__ import annotations

import pytest

from wrenn_sandbox.hostagent.phases import Stopwatch


def test_phases_are_listed_in_order_without_the_failed_one() -> None:
    watch = Stopwatch()
    for name in ("first", "second"):
        with watch.phase(name):
            pass
    with pytest.raises(RuntimeError), watch.phase("third"):
        raise RuntimeError
    assert [phase.name for phase in watch.phases] == ["first", "second"]
    assert all(phase.ms >= 0 for phase in watch.phases)
