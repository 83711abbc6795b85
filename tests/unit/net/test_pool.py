"""The pool's decisions, with slots that are made at once and cost nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from wrenn_sandbox.core.errors import Conflict, Exhausted, Unavailable
from wrenn_sandbox.core.slots import Slot
from wrenn_sandbox.core.spec import NetworkPolicy
from wrenn_sandbox.net import pool as module
from wrenn_sandbox.net.namespace import SlotTaken
from wrenn_sandbox.net.pool import NamespacePool, PoolOptions
from wrenn_sandbox.net.services.dns import Forwarder, Upstream
from wrenn_sandbox.net.slotlink import SlotLink

POLICY = NetworkPolicy()


class Kernel:
    """Makes slots, unless told to fail; knows which there are."""

    def __init__(self) -> None:
        self.there: set[int] = set()
        self.most_at_once = 0
        self.making = 0
        self.error: Callable[[int], Exception | None] = lambda number: None
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def opened(self, slot: Slot, *rest: Any) -> AsyncIterator[SlotLink]:
        self.making += 1
        self.most_at_once = max(self.most_at_once, self.making)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            error = self.error(slot.index)
        finally:
            self.making -= 1
        if error is not None:
            raise error
        self.there.add(slot.index)
        try:
            yield SlotLink(slot, 0, rest[2], Forwarder(Upstream()))
        finally:
            await asyncio.sleep(0)
            self.there.discard(slot.index)


def scene(monkeypatch: pytest.MonkeyPatch, play: Callable[[NamespacePool, Kernel], Any], **options: Any) -> None:
    """Run ``play`` with an open pool; in the end no slot may be there."""

    async def run() -> None:
        kernel = Kernel()
        monkeypatch.setattr(module, "opened", kernel.opened)
        monkeypatch.setattr(module, "_QUIET_S", 0)
        monkeypatch.setattr(module, "_RETRY_S", 0)
        monkeypatch.setattr(NamespacePool, "_check_host", lambda self: None)
        monkeypatch.setattr(module.HostSide, "set_up", lambda self: None)
        monkeypatch.setattr(module.HostSide, "tear_down", lambda self: None)
        async with NamespacePool(PoolOptions(**{"warm": 2, **options})) as pool:
            async with asyncio.timeout(5):
                await play(pool, kernel)
        assert kernel.there == set()

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_slots_are_kept_warm_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        await until(lambda: kernel.there == {1, 2})
        async with pool.link(POLICY) as link:
            assert link.slot.index == 1
            await until(lambda: kernel.there == {1, 2, 3})
        await until(lambda: kernel.there == {2, 3})

    scene(monkeypatch, play)


def test_a_warm_slot_is_handed_out_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        await until(lambda: len(kernel.there) == 2)
        context = pool.link(POLICY)
        with pytest.raises(StopIteration):  # it ran to its end in one step of the loop
            context.__aenter__().__await__().send(None)
        await context.__aexit__(None, None, None)

    scene(monkeypatch, play)


def test_makes_are_bounded_and_a_crowd_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(pool.link(POLICY))
            assert len(kernel.there) >= 20
        assert kernel.most_at_once == 2

    scene(monkeypatch, play)


def test_those_who_wait_are_served_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        kernel.gate.clear()
        served: list[str] = []

        async def take(name: str) -> None:
            async with pool.link(POLICY):
                served.append(name)
                await until(lambda: len(served) == 3)

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(take(name))
            await asyncio.sleep(0)
            kernel.gate.set()
        assert served == ["a", "b", "c"]

    scene(monkeypatch, play, warm=0)


def test_the_limit_counts_those_in_use_and_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        async with pool.link(POLICY):
            with pytest.raises(Exhausted) as caught:
                async with pool.link(POLICY):
                    pass
            assert caught.value.slug == "host_full"
            assert caught.value.retry_after_s > 0
        async with pool.link(POLICY):
            pass

    scene(monkeypatch, play, limit=1)


def test_a_cancelled_waiter_gives_its_slot_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        kernel.gate.clear()

        async def take() -> None:
            async with pool.link(POLICY):
                pass

        async with asyncio.TaskGroup() as group:
            task = group.create_task(take())
            await until(lambda: kernel.making == 1)
            task.cancel()
        kernel.gate.set()
        async with pool.link(POLICY) as link:
            assert link.slot.index == 1

    scene(monkeypatch, play, warm=0, limit=1)


def test_taken_numbers_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        kernel.error = lambda number: SlotTaken("x") if number in {1, 2, 4} else None
        async with pool.link(POLICY) as link:
            assert link.slot.index == 3
        async with pool.link(POLICY) as link:
            assert link.slot.index == 5

    scene(monkeypatch, play, warm=0)


def test_a_failure_is_told_to_those_who_wait_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        kernel.error = lambda number: OSError(12, "no memory")
        with pytest.raises(Unavailable) as caught:
            async with pool.link(POLICY):
                pass
        assert caught.value.slug == "network_setup_failed"
        kernel.error = lambda number: None
        async with pool.link(POLICY):
            pass

    scene(monkeypatch, play, warm=0)


def test_nothing_is_handed_out_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[NamespacePool] = []

    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        pools.append(pool)

    scene(monkeypatch, play)
    with pytest.raises(Unavailable) as caught:
        asyncio.run(pools[0].link(POLICY).__aenter__())
    assert caught.value.slug == "network_down"


def test_slots_made_while_it_ends_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        kernel.gate.clear()
        await until(lambda: kernel.making == 2)
        asyncio.get_running_loop().call_later(0.01, kernel.gate.set)

    scene(monkeypatch, play)


class Old:
    """Slots of a dead agent: taken over unless told to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.policy_error: Exception | None = None
        self.spared: list[bool] = []
        self.removed: list[str] = []
        self.swept: list[set[int]] = []
        monkeypatch.setattr(module, "taken_over", self.taken_over)
        monkeypatch.setattr(SlotLink, "apply", lambda link, policy: self.apply(policy))
        monkeypatch.setattr(module, "_remove", lambda old: self.removed.append(old.netns))
        monkeypatch.setattr(module, "sweep", self.sweep)

    @asynccontextmanager
    async def taken_over(self, slot: Slot, *rest: Any) -> AsyncIterator[SlotLink]:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        link = SlotLink(slot, None, rest[1], Forwarder(Upstream()))
        try:
            yield link
        finally:
            self.spared.append(link.spared)

    async def apply(self, policy: NetworkPolicy) -> None:
        if self.policy_error is not None:
            raise self.policy_error

    def sweep(self, tag: str, pools: object, live: set[int], *, rules: bool) -> int:
        self.swept.append(live)
        return 0


def test_a_reserved_slot_is_not_swept_and_not_handed_out_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Old(monkeypatch)

    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        pool.reserve([1, 2, 40000])
        async with pool.link(POLICY) as link:
            assert link.slot.index == 3
        await until(lambda: kernel.there == set())
        for old.error in (Unavailable("no", slug="network_lost"), OSError(24, "too many open files")):
            with pytest.raises(type(old.error)):
                async with pool.adopt(1, POLICY):
                    pass
        old.error, old.policy_error = None, Unavailable("no")
        with pytest.raises(Unavailable):
            async with pool.adopt(1, POLICY):
                pass
        await until(lambda: old.spared == [True])
        await pool.sweep()
        assert old.swept == [{1, 2}]
        old.policy_error = None
        async with pool.adopt(1, POLICY):
            await pool.give_up(1)
            with pytest.raises(Conflict):
                async with pool.adopt(1, POLICY):
                    pass
        await until(lambda: old.spared == [True, False])
        assert pool._in_use == 0 and pool._reserved == {2} and old.removed == []
        await pool.give_up(2)
        await pool.give_up(1)
        assert old.removed == ["wrenn-ns-2"] and pool._reserved == pool._numbers._taken == set()

    scene(monkeypatch, play, warm=0)


def test_a_cancelled_adoption_leaves_the_slot_to_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Old(monkeypatch)

    async def play(pool: NamespacePool, kernel: Kernel) -> None:
        pool.reserve([1])

        async def take() -> None:
            async with pool.adopt(1, POLICY):
                raise AssertionError("it was adopted")

        async with asyncio.TaskGroup() as group:
            task = group.create_task(take())
            await until(lambda: pool._in_use == 1)
            task.cancel()
        assert task.cancelled()
        await until(lambda: old.spared == [True] and not pool._kept)
        assert pool._in_use == 0 and pool._reserved == {1}
        async with pool.adopt(1, POLICY):
            pass

    scene(monkeypatch, play, warm=0)
