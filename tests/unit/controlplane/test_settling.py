from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from wrenn_sandbox.controlplane import settling as module
from wrenn_sandbox.controlplane.settling import settling
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.ids import SandboxId

ONE = SandboxId(UUID(int=1))


def test_work_goes_on_without_its_caller() -> None:
    async def main() -> None:
        go, done = asyncio.Event(), []

        async def work() -> str:
            await go.wait()
            done.append("yes")
            return "result"

        async with settling() as begun:
            async with asyncio.TaskGroup() as group:
                caller = group.create_task(begun.finish(ONE, work()))
                await asyncio.sleep(0)
                assert begun.is_busy(ONE)
                caller.cancel()
            assert caller.cancelled() and begun.is_busy(ONE)
            go.set()
        assert done == ["yes"] and not begun.is_busy(ONE)

    asyncio.run(main())


def test_results_and_errors_reach_the_caller_and_nobody_else() -> None:
    async def give() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("mine")

    async def main() -> None:
        async with settling() as begun:
            assert await begun.finish(ONE, give()) == 7
            with pytest.raises(ValueError, match="mine"):
                await begun.finish(ONE, fail())
            begun.begin(ONE, fail())
            assert not begun.is_busy(SandboxId(UUID(int=2)))
        assert not begun.is_busy(ONE)

    asyncio.run(main())


def test_when_it_closes_nothing_new_begins() -> None:
    async def give() -> int:
        return 7

    async def main() -> None:
        async with settling() as begun:
            begun.close()
            with pytest.raises(Unavailable) as caught:
                await begun.finish(ONE, give())
            assert caught.value.slug == "stopping"
            begun.begin(ONE, give())

    asyncio.run(main())


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.0)
    ended: list[str] = []

    async def stuck() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def main() -> None:
        async with settling() as begun:
            begun.begin(ONE, stuck())
            await asyncio.sleep(0)

    asyncio.run(main())
    assert ended == ["cancelled"]


def test_work_may_be_about_several() -> None:
    async def main() -> None:
        others = [SandboxId(UUID(int=n)) for n in range(2, 5)]
        async with settling() as begun:

            async def work() -> list[bool]:
                return [begun.is_busy(subject) for subject in (ONE, *others)]

            assert await begun.finish(ONE, work(), also=[*others, ONE]) == [True] * 4
            assert not any(begun.is_busy(subject) for subject in (ONE, *others))

    asyncio.run(main())
