from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from wrenn_sandbox.core.errors import Conflict, Exhausted
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.hostagent.inbox import MAX_WAITING, Inbox, Operation, Stop


def test_the_first_stop_counts(run) -> None:
    async def work() -> None:
        inbox = Inbox()
        inbox.end(Stop(State.ERROR, "vmm_died"))
        inbox.end(Stop(State.STOPPED))
        assert inbox.stop == Stop(State.ERROR, "vmm_died")
        await inbox.news(None)

    run(work)


def test_operations_come_in_turn_and_are_joined_by_build(run) -> None:
    async def work() -> None:
        inbox, build_id = Inbox(), uuid4()
        first = inbox.ask(Operation(Action.PAUSE, build_id))
        assert inbox.ask(Operation(Action.PAUSE, build_id)) is first
        second = inbox.ask(Operation(Action.SNAPSHOT, build_id))
        assert (inbox.next(), inbox.next(), inbox.next()) == (first, second, None)

    run(work)


def test_the_line_is_bounded(run) -> None:
    async def work() -> None:
        inbox = Inbox()
        for _ in range(MAX_WAITING):
            inbox.ask(Operation(Action.SNAPSHOT, uuid4()))
        with pytest.raises(Exhausted) as full:
            inbox.ask(Operation(Action.SNAPSHOT, uuid4()))
        assert full.value.slug == "sandbox_busy"

    run(work)


def test_news_end_a_wait_and_so_does_time(run) -> None:
    async def work() -> None:
        inbox = Inbox()
        await inbox.news(0)
        inbox.attend()
        await inbox.news(None)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(inbox.news(None))
            await asyncio.sleep(0)
            assert not waiting.done()
            inbox.ask(Operation(Action.PAUSE, uuid4()))

    run(work)


def test_whoever_leaves_early_changes_nothing_for_the_others(run) -> None:
    async def work() -> None:
        operation = Operation(Action.PAUSE, uuid4())
        async with asyncio.TaskGroup() as group:
            early = group.create_task(operation.settled())
            await asyncio.sleep(0)
            early.cancel()
        assert early.cancelled() and not operation.answer.done()
        operation.failed(Conflict("no"))
        operation.failed(Conflict("again"))
        with pytest.raises(Conflict, match="no"):
            await operation.settled()

    run(work)
