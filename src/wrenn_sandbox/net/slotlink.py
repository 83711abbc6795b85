"""One slot and everything that belongs to it: namespace, tap, rules, links, and the services' sockets.

Made and removed in worker threads; what is between is the event loop's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.slots import GATEWAY_IP, AddressPools, Slot
from wrenn_sandbox.core.spec import Egress, NetworkPolicy
from wrenn_sandbox.net import conntrack, namespace, nftables
from wrenn_sandbox.net.firewall import HostFacts, Limits, policy_rules, sandbox_rules
from wrenn_sandbox.net.services import dns, ntp

T = TypeVar("T")

_LISTEN_BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all slots of an agent have in common."""

    pools: AddressPools
    facts: HostFacts
    limits: Limits
    metadata: bool


@dataclass(slots=True)
class SlotLink:
    """A slot as its sandbox holds it (``net.network.Link``)."""

    slot: Slot
    tap_fd: int | None  # None in one that was taken over: its machine has the only descriptor
    executor: Executor
    forwarder: dns.Forwarder
    released: asyncio.Event = field(default_factory=asyncio.Event)
    spared: bool = False  # it is left to the machine that uses it, and can be taken over again
    policy: NetworkPolicy | None = field(default_factory=NetworkPolicy)  # None: not known
    _applying: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def apply(self, policy: NetworkPolicy) -> None:
        """Replace the egress policy in one transaction, or raise Invalid (``invalid_network_policy``)."""
        rules = policy_rules(policy)
        async with self._applying:
            if policy == self.policy:
                return
            enter = partial(namespace.run_inside, self.slot.netns, partial(nftables.transact, rules))
            await run_to_end(self.executor, enter)
            self.policy = policy
            self.forwarder.open = policy.egress is not Egress.CLOSED


@dataclass(slots=True)
class _Parts:
    """What the worker thread made. ``close`` removes all of it, and blocks for some ten milliseconds."""

    tap_fd: int | None
    sockets: tuple[socket.socket, socket.socket, socket.socket]
    stack: ExitStack

    def close(self) -> None:
        self.stack.close()

    def let_go(self) -> None:
        """Remove nothing but what is this process's own."""
        for each in self.sockets:
            each.close()
        self.stack.pop_all()


@asynccontextmanager
async def opened(
    slot: Slot, recipe: Recipe, upstream: dns.Upstream, makers: Executor, removers: Executor
) -> AsyncIterator[SlotLink]:
    """A connected slot with the default policy in force; all of it is gone when the context has been left.

    Raises namespace.SlotTaken, WrennError, OSError or NetlinkError. Cancelling waits for the step under way.
    """
    making = asyncio.get_running_loop().run_in_executor(makers, _make, slot, recipe)
    async with _served(slot, making, upstream, makers, removers) as link:
        yield link


@asynccontextmanager
async def taken_over(
    slot: Slot, upstream: dns.Upstream, makers: Executor, removers: Executor
) -> AsyncIterator[SlotLink]:
    """A slot that a dead agent made, with its rules as they are; all of it is gone when the context has been left,
    unless it is ``spared`` then or could not be entered.

    Raises Unavailable (``network_lost``), OSError.
    """
    taking = asyncio.get_running_loop().run_in_executor(makers, _take_over, slot)
    async with _served(slot, taking, upstream, makers, removers, spared=True) as link:
        link.spared = False
        link.policy = None
        yield link


@asynccontextmanager
async def _served(
    slot: Slot,
    making: asyncio.Future[_Parts],
    upstream: dns.Upstream,
    makers: Executor,
    removers: Executor,
    *,
    spared: bool = False,
) -> AsyncIterator[SlotLink]:
    link = None
    try:
        parts = await settled(making)
        clock, datagrams, listener = parts.sockets
        forwarder = dns.Forwarder(upstream)
        with ntp.serve(clock):
            async with dns.serve(forwarder, datagrams, listener):
                link = SlotLink(slot, parts.tap_fd, makers, forwarder, spared=spared)
                yield link
    finally:
        if making.exception() is None:
            spared = spared if link is None else link.spared
            parts = making.result()
            await run_to_end(removers, parts.let_go if spared else parts.close)


async def run_to_end(executor: Executor, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread; a cancel is felt only when it has ended, since a thread cannot be stopped."""
    return await settled(asyncio.get_running_loop().run_in_executor(executor, work))


async def settled(future: asyncio.Future[T]) -> T:
    """The result of ``future``; a cancel meanwhile leaves it alone and is raised when it is done."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


def _make(slot: Slot, recipe: Recipe) -> _Parts:
    rules = sandbox_rules(slot, NetworkPolicy(), recipe.pools, recipe.facts, recipe.limits, metadata=recipe.metadata)
    with ExitStack() as stack:
        tap_fd = namespace.create(slot)
        stack.callback(namespace.remove_name, slot.netns)
        stack.callback(os.close, tap_fd)
        sockets = namespace.run_inside(slot.netns, lambda: _furnish(rules))
        for each in sockets:
            stack.callback(each.close)
        namespace.connect(slot)
        stack.callback(_disconnect, slot)
        return _Parts(tap_fd, sockets, stack.pop_all())


def _take_over(slot: Slot) -> _Parts:
    if not namespace.is_whole(slot):
        raise Unavailable(f"The network of slot {slot.index} is not there any more.", slug="network_lost")
    with ExitStack() as stack:
        sockets = namespace.run_inside(slot.netns, _bind)
        stack.callback(namespace.remove_name, slot.netns)
        for each in sockets:
            stack.callback(each.close)
        stack.callback(_disconnect, slot)
        return _Parts(None, sockets, stack.pop_all())


def _disconnect(slot: Slot) -> None:
    namespace.remove_link(slot.veth)
    conntrack.forget(slot)


def _furnish(rules: str) -> tuple[socket.socket, socket.socket, socket.socket]:
    nftables.transact(rules)
    return _bind()


def _bind() -> tuple[socket.socket, socket.socket, socket.socket]:
    with ExitStack() as stack:
        bound = []
        for kind, port in (
            (socket.SOCK_DGRAM, ntp.PORT),
            (socket.SOCK_DGRAM, dns.PORT),
            (socket.SOCK_STREAM, dns.PORT),
        ):
            made = stack.enter_context(socket.socket(socket.AF_INET, kind))
            made.setblocking(False)
            made.bind((GATEWAY_IP, port))
            bound.append(made)
        clock, datagrams, listener = bound
        listener.listen(_LISTEN_BACKLOG)
        stack.pop_all()
        return clock, datagrams, listener
