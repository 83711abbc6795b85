"""What the host agent asks of the network.

A link is one slot in use. Leaving its context frees the slot: the namespace is destroyed or cleaned so that nothing of
one sandbox (connections, conntrack entries, counters, policy) reaches the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from wrenn_sandbox.core.slots import Slot
from wrenn_sandbox.core.spec import NetworkPolicy


class Link(Protocol):
    """One slot in use by one sandbox."""

    @property
    def slot(self) -> Slot:
        """Number, addresses and uid."""

    @property
    def tap_fd(self) -> int | None:
        """The tap, open with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, owned by the link; None without real networking."""

    async def apply(self, policy: NetworkPolicy) -> None:
        """Replace the egress policy in one transaction; open connections that it forbids are cut."""


class Network(Protocol):
    """All slots of this host. Its owner enters it as a context before the first link, leaves it after the last."""

    def link(self, policy: NetworkPolicy) -> AbstractAsyncContextManager[Link]:
        """A free slot with the policy in force; raises Exhausted (``host_full``) when there is none."""

    def adopt(self, number: int, policy: NetworkPolicy) -> AbstractAsyncContextManager[Link]:
        """The slot that the machine of a dead agent still uses, as if ``link`` had given it; its ``tap_fd`` is None.

        Raises Unavailable (``network_lost``) when it is not whole any more, Conflict (``slot_in_use``). When it cannot
        be taken over it is left as it is, and stays reserved.
        """

    def reserve(self, numbers: Iterable[int]) -> None:
        """These slots are used by machines that an earlier agent left: nobody gets them, and no sweep takes them away,
        before they were adopted or are given up.
        """

    async def give_up(self, number: int) -> None:
        """Remove what there is of a reserved slot that was not adopted; of any other, nothing."""

    async def sweep(self) -> int:
        """Remove what a dead agent of the same tag left behind; returns how many namespaces and links went."""
