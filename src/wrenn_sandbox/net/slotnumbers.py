"""Which slot numbers are in use. Pure."""

from __future__ import annotations

from wrenn_sandbox.core.slots import FIRST_SLOT, LAST_SLOT, AddressPools


class SlotNumbers:
    """Numbers from ``first`` on, handed out in turn, so that one given back rests as long as possible."""

    def __init__(self, last: int = LAST_SLOT, first: int = FIRST_SLOT) -> None:
        self._last = last
        self._next = first
        self._taken: set[int] = set()

    def take(self) -> int | None:
        """The next free number; None when all are taken."""
        count = self._last - FIRST_SLOT + 1
        for step in range(count):
            number = FIRST_SLOT + (self._next - FIRST_SLOT + step) % count
            if number not in self._taken:
                self._taken.add(number)
                self._next = number + 1
                return number
        return None

    def claim(self, number: int) -> bool:
        """Take this very number; False when it is taken already or is none of ours."""
        if number in self._taken or not self.has(number):
            return False
        self._taken.add(number)
        return True

    def has(self, number: int) -> bool:
        """Whether it is one of ours, taken or not."""
        return FIRST_SLOT <= number <= self._last

    def give_back(self, number: int) -> None:
        """``number`` may be handed out again."""
        self._taken.discard(number)


def last_number(pools: AddressPools) -> int:
    """The highest slot whose addresses lie in both pools."""
    return min(LAST_SLOT, pools.hosts.num_addresses - 2, pools.links.num_addresses // 2 - 1)
