"""The slots of this host: some kept ready, handed out at once, removed behind their sandboxes.

::

    number ──▶ being made ──▶ warm ──link()──▶ in use ──left──▶ being removed ──▶ number free again

Each slot is one task that makes it, waits until it is released and removes it, so that whatever ends the pool ends
every slot the same way. Numbers go round, so a released one rests as long as possible.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog
from pyroute2.netlink.exceptions import NetlinkError

from wrenn_sandbox.core.errors import Conflict, Exhausted, Unavailable, WrennError
from wrenn_sandbox.core.slots import DEFAULT_POOLS, LAST_SLOT, AddressPools, Slot, slot
from wrenn_sandbox.core.spec import NetworkPolicy
from wrenn_sandbox.net import conflicts, conntrack, namespace, nftables
from wrenn_sandbox.net.firewall import Limits, host_rules_removal, policy_rules
from wrenn_sandbox.net.host import HostSide, stop_forwarding
from wrenn_sandbox.net.services import dns
from wrenn_sandbox.net.slotlink import Recipe, SlotLink, opened, run_to_end, settled, taken_over
from wrenn_sandbox.net.slotnumbers import SlotNumbers, last_number

T = TypeVar("T")

_log = structlog.get_logger()

_PARALLEL_MAKES = 2
#: One more than builds under way at most, so that a policy never waits behind them.
_MAKER_THREADS = _PARALLEL_MAKES + 1
_REMOVER_THREADS = 2
#: A sandbox that has just taken a slot is being restored: leave it the processors, unless others wait.
_QUIET_S = 0.3
_RETRY_S = 1.0
_WAIT_S = 15.0
_WATCH_S = 10.0


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How an agent uses the network. ``limit`` bounds the slots in use at once; ``warm`` are kept ready beside them."""

    tag: str = "wrenn"
    pools: AddressPools = DEFAULT_POOLS
    warm: int = 4
    limit: int = LAST_SLOT
    agent_uid: int = field(default_factory=os.getuid)
    limits: Limits = field(default_factory=Limits)
    metadata: bool = False
    resolv_conf: Path = Path("/etc/resolv.conf")


class NamespacePool:
    """Real networking (``net.network.Network``). Needs root; one pool a tag and network namespace."""

    def __init__(self, options: PoolOptions = PoolOptions()) -> None:
        self._options = options
        self._numbers = SlotNumbers(last_number(options.pools))
        #: Numbers whose names or addresses belong to somebody else, or that could not be removed.
        self._blocked: set[int] = set()
        #: Numbers that machines of a dead agent use, from before they are taken over until they are not used any more.
        self._reserved: set[int] = set()
        #: Numbers of which there may be anything on the host; and of these, the ones that are made.
        self._kept: set[int] = set()
        self._host = HostSide(options.tag, options.pools, options.agent_uid)
        self._upstream = dns.Upstream(options.resolv_conf)
        self._warm: deque[SlotLink] = deque()
        self._waiters: deque[asyncio.Future[SlotLink]] = deque()
        self._live: dict[int, SlotLink] = {}
        self._in_use = 0
        self._making = 0
        self._open = False
        self._failed = False
        self._places = asyncio.Semaphore(_PARALLEL_MAKES)
        self._all_places = asyncio.Lock()
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Check the host, put the host's rules in force, begin to make slots.

        Raises Conflict with the slug of what is in the way (``net.conflicts``), Unavailable or Bug.
        """
        async with AsyncExitStack() as stack:
            self._makers = stack.enter_context(ThreadPoolExecutor(_MAKER_THREADS, "net-make"))
            self._removers = stack.enter_context(ThreadPoolExecutor(_REMOVER_THREADS, "net-remove"))
            await self._run(self._check_host)
            stack.push_async_callback(self._tear_down_host)
            await self._run(self._host.set_up)
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            chores = [self._group.create_task(self._refill()), self._group.create_task(self._watch())]
            stack.callback(self._shut, chores)
            self._open = True
            self._wake.set()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove every slot, the host's rules and what we switched on."""
        await self._stack.aclose()

    def link(self, policy: NetworkPolicy) -> AbstractAsyncContextManager[SlotLink]:
        """A slot with ``policy`` in force; it is removed behind the caller's back when the context is left.

        Raises Exhausted (``host_full``), Invalid (``invalid_network_policy``), Unavailable (``network_setup_failed``).
        """
        return self._lent(policy, self._take)

    def adopt(self, number: int, policy: NetworkPolicy) -> AbstractAsyncContextManager[SlotLink]:
        """The slot that the machine of a dead agent still uses, with ``policy`` in force.

        Raises Unavailable (``network_lost``), Conflict (``slot_in_use``), Invalid (``invalid_network_policy``); the
        slot stays as it is then.
        """
        return self._lent(policy, partial(self._take_over, number))

    def reserve(self, numbers: Iterable[int]) -> None:
        """Slots that machines of a dead agent use: not handed out and not swept."""
        for number in numbers:
            if self._numbers.has(number) and number not in self._kept:
                self._numbers.claim(number)
                self._reserved.add(number)

    async def give_up(self, number: int) -> None:
        """Remove a reserved slot that is not adopted."""
        if number not in self._reserved or number in self._kept:
            return
        async with self._nothing_made():
            if number in self._kept:
                return
            await run_to_end(self._removers, partial(_remove, slot(number, self._options.pools, self._options.tag)))
            self._reserved.discard(number)
            self._blocked.discard(number)
            self._numbers.give_back(number)

    async def sweep(self) -> int:
        """Remove every namespace and link of this tag that is not ours; returns how many names went."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._nothing_made())
            live = self._kept | self._reserved
            work = partial(sweep, self._options.tag, self._options.pools, live, rules=not self._open)
            count = await run_to_end(stack.enter_context(ThreadPoolExecutor(1, "net-sweep")), work)
            for number in self._blocked - self._reserved:
                self._numbers.give_back(number)
            self._blocked.clear()
        return count

    @asynccontextmanager
    async def _nothing_made(self) -> AsyncIterator[None]:
        """No slot is being made within the context. One at a time may wait for that: two would wait for each other."""
        async with self._all_places, AsyncExitStack() as stack:
            for _ in range(_PARALLEL_MAKES):
                await stack.enter_async_context(self._places)
            yield

    @asynccontextmanager
    async def _lent(self, policy: NetworkPolicy, take: Callable[[], Awaitable[SlotLink]]) -> AsyncIterator[SlotLink]:
        policy_rules(policy)
        link = await take()
        try:
            await link.apply(policy)
        except BaseException:
            self._in_use -= 1
            link.spared = link.slot.index in self._reserved
            link.released.set()
            raise
        try:
            yield link
        finally:
            self._in_use -= 1
            link.released.set()

    async def _take(self) -> SlotLink:
        if not self._open:
            raise Unavailable("The network of this host is not up.", slug="network_down")
        if self._in_use >= self._options.limit:
            raise Exhausted(f"All {self._options.limit} network slots of this host are in use.", retry_after_s=5)
        self._in_use += 1
        try:
            link = self._warm.popleft() if self._warm else await self._wait()
        except BaseException:
            self._in_use -= 1
            raise
        self._wake.set()
        return link

    async def _take_over(self, number: int) -> SlotLink:
        waiter: asyncio.Future[SlotLink] = asyncio.get_running_loop().create_future()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._nothing_made())  # nobody is looking at this very number
            if not self._open:
                raise Unavailable("The network of this host is not up.", slug="network_down")
            free = number in self._reserved | self._blocked or self._numbers.claim(number)
            if number in self._kept or not free:
                raise Conflict(f"Network slot {number} is in use.", slug="slot_in_use")
            self._blocked.discard(number)
            self._reserved.add(number)
            self._kept.add(number)
            self._in_use += 1
            self._group.create_task(self._keep_old(number, waiter))
        try:
            return await settled(waiter)
        except BaseException:
            self._in_use -= 1
            if waiter.done() and waiter.exception() is None:  # we were cancelled meanwhile
                waiter.result().spared = True
                waiter.result().released.set()
            raise

    async def _keep_old(self, number: int, waiter: asyncio.Future[SlotLink]) -> None:
        """The rest of the life of a slot that a dead agent made."""
        the_slot = slot(number, self._options.pools, self._options.tag)
        try:
            async with taken_over(the_slot, self._upstream, self._makers, self._removers) as link:
                self._live[number] = link
                waiter.set_result(link)
                await link.released.wait()
            if not link.spared:
                self._reserved.discard(number)
                self._numbers.give_back(number)
        except (WrennError, OSError, NetlinkError) as error:
            if waiter.done():
                _log.error("network.slot_failed", slot=number, making=False, error=str(error))
                self._reserved.discard(number)
                self._blocked.add(number)  # a sweep looks after what is left of it
            else:
                waiter.set_exception(error)
        finally:
            if not waiter.done():
                waiter.set_exception(Unavailable("The host agent is stopping.", slug="network_down"))
            self._live.pop(number, None)
            self._kept.discard(number)
            self._wake.set()

    async def _wait(self) -> SlotLink:
        waiter: asyncio.Future[SlotLink] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake.set()
        self._urgent.set()
        try:
            async with asyncio.timeout(_WAIT_S):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._deliver(waiter.result())  # it came in the same moment; the next one shall have it
            if isinstance(error, TimeoutError):
                message = f"No network slot was ready within {_WAIT_S:.0f} s; look at the agent's log."
                raise Unavailable(message, slug="network_setup_failed", retry_after_s=5) from None
            raise
        finally:
            with suppress(ValueError):
                self._waiters.remove(waiter)

    def _deliver(self, link: SlotLink) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(link)
                return
        self._warm.append(link)

    def _disappoint(self, error: WrennError) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    def _missing(self) -> int:
        return len(self._waiters) + self._options.warm - len(self._warm) - self._making

    async def _refill(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._failed:
                self._failed = False
                await asyncio.sleep(_RETRY_S)
            elif self._warm and not self._waiters:
                self._urgent.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_QUIET_S):
                        await self._urgent.wait()
            while self._missing() > 0 and not self._failed:
                await self._places.acquire()
                number = self._numbers.take() if self._missing() > 0 else None
                if number is None:
                    self._places.release()
                    if self._missing() > 0:
                        self._disappoint(Exhausted("This host has no network slot left.", retry_after_s=5))
                    break
                self._making += 1
                self._group.create_task(self._keep(number))

    async def _keep(self, number: int) -> None:
        """The whole life of one slot. Its number is free again only when nothing of it is left."""
        options = self._options
        recipe = Recipe(options.pools, self._host.facts, options.limits, options.metadata)
        the_slot = slot(number, options.pools, options.tag)
        self._kept.add(number)
        making = True
        try:
            async with opened(the_slot, recipe, self._upstream, self._makers, self._removers) as link:
                making = False
                self._made()
                if self._open:
                    self._live[number] = link
                    self._deliver(link)
                    await link.released.wait()
            self._numbers.give_back(number)
        except namespace.SlotTaken:
            self._blocked.add(number)
            _log.info("network.slot_taken", slot=number)
        except (WrennError, OSError, NetlinkError) as error:
            _log.error("network.slot_failed", slot=number, making=making, error=str(error))
            if making:
                self._numbers.give_back(number)
                self._fail()
            else:
                self._blocked.add(number)
        finally:
            if making:
                self._made()
            self._live.pop(number, None)
            self._kept.discard(number)
            self._wake.set()

    def _made(self) -> None:
        self._making -= 1
        self._places.release()

    def _fail(self) -> None:
        self._failed = True
        message = "A sandbox's network could not be set up; look at the agent's log and at wrenn doctor."
        self._disappoint(Unavailable(message, slug="network_setup_failed", retry_after_s=5))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                await self._run(self._host.refresh)
            except (WrennError, OSError, NetlinkError) as error:
                _log.error("network.refresh_failed", error=str(error))

    def _shut(self, chores: list[asyncio.Task[None]]) -> None:
        self._open = False
        self._disappoint(Unavailable("The host agent is stopping.", slug="network_down"))
        for chore in chores:
            chore.cancel()
        for link in self._live.values():
            link.released.set()

    def _check_host(self) -> None:
        findings = conflicts.find(self._options.tag, self._options.pools)
        conflicts.require_clear(findings)
        for finding in findings:
            _log.warning("network.finding", slug=finding.slug, message=finding.message)
        namespace.prepare_directory()

    async def _tear_down_host(self) -> None:
        await run_to_end(self._removers, self._host.tear_down)

    async def _run(self, work: Callable[[], T]) -> T:
        return await run_to_end(self._makers, work)


def _remove(old: Slot) -> None:
    """Remove whatever there is of a slot that no task of ours keeps. Blocks."""
    namespace.remove_link(old.veth)
    conntrack.forget(old)
    namespace.remove_name(old.netns)


def sweep(tag: str, pools: AddressPools, live: set[int], *, rules: bool) -> int:
    """Remove the namespaces and links of ``tag`` but the ``live`` ones, and with ``rules`` the host's table. Blocks."""
    keep = {slot(number, pools, tag) for number in live}
    links = [name for name in namespace.links(tag) if name not in {each.veth for each in keep}]
    names = [name for name in namespace.names(tag) if name not in {each.netns for each in keep}]
    for name in links:
        namespace.remove_link(name)
        conntrack.forget(slot(int(name.rpartition("v")[2]), pools, tag))
    for name in names:
        namespace.remove_name(name)
    if rules:
        nftables.transact(host_rules_removal(tag))
        stop_forwarding()
    return len(links) + len(names)
