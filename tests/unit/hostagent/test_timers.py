from __future__ import annotations

from wrenn_sandbox.core.spec import Lifetime
from wrenn_sandbox.hostagent.timers import Ending, Timers


def timers(idle_timeout_s: int = 0, ends_at_unix_s: float = 0.0) -> Timers:
    return Timers(Lifetime(idle_timeout_s=idle_timeout_s, ends_at_unix_s=ends_at_unix_s), last_use_s=100.0)


def test_neither_limit_means_for_ever() -> None:
    assert timers().due(1e9, 1e12) is None
    assert timers().sleep_s(1e9, 1e12) == 30.0


def test_idle_timeout_counts_from_the_last_use() -> None:
    limits = timers(idle_timeout_s=10)
    assert limits.due(109.9, 0) is None
    assert limits.due(110.0, 0) is Ending.IDLE
    limits.touch(109.0)
    assert limits.due(110.0, 0) is None and limits.sleep_s(110.0, 0) == 9.0


def test_a_use_that_lasts_keeps_it_alive_and_the_count_begins_at_its_end() -> None:
    limits = timers(idle_timeout_s=10)
    limits.begin_use(105.0)
    limits.begin_use(106.0)
    limits.end_use(107.0)
    assert limits.due(10_000.0, 0) is None
    limits.end_use(10_000.0)
    assert limits.due(10_009.0, 0) is None
    assert limits.due(10_010.0, 0) is Ending.IDLE


def test_deadline_strikes_even_in_use_and_before_the_idle_timeout() -> None:
    limits = timers(idle_timeout_s=10, ends_at_unix_s=5000.0)
    limits.begin_use(100.0)
    assert limits.due(200.0, 4999.9) is None
    assert limits.due(200.0, 5000.0) is Ending.DEADLINE
    limits.end_use(100.0)
    assert limits.due(200.0, 5000.0) is Ending.DEADLINE


def test_sleep_ends_when_something_may_be_due_and_looks_at_the_wall_clock_often() -> None:
    assert timers(ends_at_unix_s=5000.0).sleep_s(0.0, 4990.0) == 10.0
    assert timers(ends_at_unix_s=5000.0).sleep_s(0.0, 1000.0) == 30.0
    assert timers(ends_at_unix_s=5000.0).sleep_s(0.0, 6000.0) == 0.0


def test_other_limits_count_as_a_use() -> None:
    limits = timers(idle_timeout_s=10)
    limits.replace(Lifetime(idle_timeout_s=5), 109.0)
    assert limits.due(113.9, 0) is None and limits.due(114.0, 0) is Ending.IDLE
