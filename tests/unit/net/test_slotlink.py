import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from threading import Event

import pytest

from wrenn_sandbox.core.errors import Bug, Invalid
from wrenn_sandbox.core.slots import slot
from wrenn_sandbox.core.spec import Egress, NetworkPolicy
from wrenn_sandbox.net import slotlink
from wrenn_sandbox.net.services.dns import Forwarder, Upstream
from wrenn_sandbox.net.slotlink import SlotLink, run_to_end, settled


def test_a_cancel_waits_for_the_thread() -> None:
    async def scene() -> None:
        may_end, ended = Event(), Event()

        def work() -> None:
            may_end.wait(10)
            ended.set()

        with ThreadPoolExecutor(1) as executor:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(run_to_end(executor, work))
                for _ in range(3):
                    await asyncio.sleep(0)
                    task.cancel()
                await asyncio.sleep(0)
                assert not task.done(), "three cancels did not end it"
                may_end.set()
            assert ended.is_set()
            assert task.cancelled()

    asyncio.run(scene())


def test_results_and_errors_come_through() -> None:
    async def scene() -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(7)
        assert await settled(future) == 7
        failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        failed.set_exception(OSError("no"))
        with pytest.raises(OSError, match="no"):
            await settled(failed)

    asyncio.run(scene())


def link(executor: Executor) -> SlotLink:
    return SlotLink(slot(1), 99, executor, Forwarder(Upstream()))


def test_a_policy_is_one_transaction_in_the_slots_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    monkeypatch.setattr(slotlink.namespace, "run_inside", lambda name, work: done.append((name, work.args[0])))

    async def scene() -> None:
        with ThreadPoolExecutor(1) as executor:
            made = link(executor)
            await made.apply(NetworkPolicy())
            assert done == [], "it is in force already"
            await made.apply(NetworkPolicy(Egress.CLOSED))
            assert [name for name, _ in done] == ["wrenn-ns-1"]
            assert "add rule inet sandbox egress goto refuse" in done[0][1]
            assert not made.forwarder.open
            with pytest.raises(Invalid):
                await made.apply(NetworkPolicy(deny_out=("nonsense",)))
            assert len(done) == 1
            await made.apply(NetworkPolicy())
            assert made.forwarder.open

    asyncio.run(scene())


def test_a_policy_that_failed_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, work: object) -> None:
        raise Bug("refused")

    monkeypatch.setattr(slotlink.namespace, "run_inside", refuse)

    async def scene() -> None:
        with ThreadPoolExecutor(1) as executor:
            made = link(executor)
            with pytest.raises(Bug):
                await made.apply(NetworkPolicy(Egress.CLOSED))
            assert made.policy == NetworkPolicy()
            assert made.forwarder.open

    asyncio.run(scene())


def test_what_is_let_go_loses_only_our_sockets() -> None:
    sockets, removed = [socket.socket() for _ in range(3)], []
    stack = ExitStack()
    stack.callback(removed.append, "namespace")
    slotlink._Parts(None, (sockets[0], sockets[1], sockets[2]), stack).let_go()
    stack.close()
    assert removed == [] and [each.fileno() for each in sockets] == [-1] * 3


@pytest.mark.parametrize("entered", [True, False])
def test_a_slot_taken_over_goes_only_when_it_was_entered(monkeypatch: pytest.MonkeyPatch, entered: bool) -> None:
    done: list[str] = []

    class Parts:
        tap_fd, sockets = None, (None, None, None)

        def close(self) -> None:
            done.append("removed")

        def let_go(self) -> None:
            done.append("let go")

    @asynccontextmanager
    async def serve(*_: object) -> AsyncIterator[None]:
        if not entered:
            raise OSError("no more descriptors")
        yield

    monkeypatch.setattr(slotlink, "_take_over", lambda _: Parts())
    monkeypatch.setattr(slotlink.ntp, "serve", lambda _: nullcontext())
    monkeypatch.setattr(slotlink.dns, "serve", serve)

    async def scene() -> None:
        with ThreadPoolExecutor(1) as executor, suppress(OSError):
            async with slotlink.taken_over(slot(1), Upstream(), executor, executor) as link:
                assert not link.spared and link.policy is None

    asyncio.run(scene())
    assert done == (["removed"] if entered else ["let go"])
