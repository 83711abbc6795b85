from __future__ import annotations

from wrenn_sandbox.controlplane.cache import Expiring


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_values_expire() -> None:
    clock = Clock()
    cache: Expiring[str, int] = Expiring(5.0, clock=clock)
    cache.put("a", 1, cache.ticket())
    clock.now = 5.0
    assert cache.get("a") == 1
    clock.now = 5.1
    assert cache.get("a") is None and cache.get("b") is None


def test_a_value_read_before_a_drop_is_not_kept() -> None:
    cache: Expiring[str, int] = Expiring(5.0)
    ticket = cache.ticket()
    cache.drop("a")
    cache.put("a", 1, ticket)
    assert cache.get("a") is None
    cache.put("a", 2, cache.ticket())
    assert cache.get("a") == 2
    cache.clear()
    assert cache.get("a") is None


def test_the_oldest_goes_when_it_is_full() -> None:
    cache: Expiring[int, int] = Expiring(5.0, limit=2)
    for n in (1, 2, 1, 3):
        cache.put(n, n, cache.ticket())
    assert [cache.get(n) for n in (1, 2, 3)] == [1, None, 3]
