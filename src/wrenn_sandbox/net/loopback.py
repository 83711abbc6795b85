"""The network of the fake VMM: a loopback address a slot, no namespaces, no root, nothing enforced.

Slot i is 127.11.0.0 + i, which Linux answers without any set-up (all of 127.0.0.0/8 is local). All fake hosts of a
machine share these addresses; each begins at a number of its own, so that they rarely meet.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self

from wrenn_sandbox.core.errors import Conflict, Exhausted
from wrenn_sandbox.core.slots import DEFAULT_POOLS, FIRST_SLOT, LAST_SLOT, AddressPools, Slot, slot
from wrenn_sandbox.core.spec import NetworkPolicy
from wrenn_sandbox.net.firewall import policy_rules
from wrenn_sandbox.net.slotnumbers import SlotNumbers

#: Far apart for processes that start one after the other; coprime to the number of slots.
_STRIDE = 251
LOOPBACK_POOL = IPv4Network("127.11.0.0/16")


@dataclass(slots=True)
class LoopbackLink:
    """One slot in use. The policy is checked as the real one would be, and remembered."""

    slot: Slot
    policy: NetworkPolicy
    tap_fd: int | None = None

    async def apply(self, policy: NetworkPolicy) -> None:
        """Remember ``policy``; raises Invalid (``invalid_network_policy``)."""
        policy_rules(policy)
        self.policy = policy


@dataclass(slots=True)
class LoopbackNetwork:
    """All slots of one fake host. ``uid`` of every slot is this process's own, so that the fake needs no root."""

    tag: str = "wrenn"
    limit: int = LAST_SLOT
    pools: AddressPools = field(default_factory=lambda: replace(DEFAULT_POOLS, hosts=LOOPBACK_POOL))
    first: int = field(default_factory=lambda: FIRST_SLOT + os.getpid() * _STRIDE % LAST_SLOT)
    _numbers: SlotNumbers = field(init=False)
    _in_use: int = 0
    _reserved: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._numbers = SlotNumbers(first=self.first)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def link(self, policy: NetworkPolicy) -> AbstractAsyncContextManager[LoopbackLink]:
        """The next free slot; raises Exhausted (``host_full``) or Invalid (``invalid_network_policy``)."""
        return self._link(policy, self._numbers.take)

    def adopt(self, number: int, policy: NetworkPolicy) -> AbstractAsyncContextManager[LoopbackLink]:
        """The slot of this number; raises Conflict (``slot_in_use``) or Invalid (``invalid_network_policy``)."""

        def claim() -> int:
            if number not in self._reserved and not self._numbers.claim(number):
                raise Conflict(f"Network slot {number} is in use.", slug="slot_in_use")
            self._reserved.discard(number)
            return number

        return self._link(policy, claim)

    def reserve(self, numbers: Iterable[int]) -> None:
        """Keep these for ``adopt``."""
        self._reserved.update(number for number in numbers if self._numbers.claim(number))

    async def give_up(self, number: int) -> None:
        """A reserved number is free again."""
        if number in self._reserved:
            self._reserved.discard(number)
            self._numbers.give_back(number)

    async def sweep(self) -> int:
        """Nothing can be left behind."""
        return 0

    @asynccontextmanager
    async def _link(self, policy: NetworkPolicy, take: Callable[[], int | None]) -> AsyncIterator[LoopbackLink]:
        policy_rules(policy)
        number = take() if self._in_use < self.limit else None
        if number is None:
            raise Exhausted(f"All {self.limit} network slots of this host are in use.", retry_after_s=5)
        self._in_use += 1
        try:
            yield LoopbackLink(slot=replace(slot(number, self.pools, self.tag), uid=os.getuid()), policy=policy)
        finally:
            self._in_use -= 1
            self._numbers.give_back(number)
