"""A small cache of what was read a moment ago, for the paths on which every millisecond counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """At most ``limit`` entries, each good for ``ttl_s`` seconds.

    A value read before a ``drop`` may be older than what the dropper wrote. So a reader takes a ``ticket`` before it
    reads, and ``put`` ignores a value whose ticket is from before the last drop.
    """

    def __init__(self, ttl_s: float, limit: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s, self._limit, self._clock = ttl_s, limit, clock
        self._entries: dict[K, tuple[float, V]] = {}
        self._drops = 0

    def get(self, key: K) -> V | None:
        """The value, unless it is too old."""
        entry = self._entries.get(key)
        if entry is None or entry[0] < self._clock():
            return None
        return entry[1]

    def ticket(self) -> int:
        """To be taken before reading a value for ``put``."""
        return self._drops

    def put(self, key: K, value: V, ticket: int) -> None:
        """Keep ``value``, which was read after ``ticket`` was taken."""
        if ticket != self._drops:
            return
        self._entries.pop(key, None)
        self._entries[key] = (self._clock() + self._ttl_s, value)
        if len(self._entries) > self._limit:
            del self._entries[next(iter(self._entries))]  # the oldest

    def drop(self, key: K) -> None:
        """Forget ``key``: it was changed."""
        self._drops += 1
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._drops += 1
        self._entries.clear()
