from __future__ import annotations

import asyncio
import logging
import random

import pytest

from wrenn_sandbox.envd.ports.forward import Forwarder
from wrenn_sandbox.envd.ports.scan import Scan, Scanner
from wrenn_sandbox.envd.ports.subsystem import NoPorts, PortSubsystem, release_memory

LOG = logging.getLogger("test")


class Bench:
    """A subsystem whose cycles are counted: how many scanners run, how many were made, who frees memory."""

    def __init__(self) -> None:
        self.made = 0
        self.scanning = 0
        self.forwarding = 0
        self.scans = 0
        self.released = 0
        self.hold: asyncio.Event | None = None
        self.fail = False
        self.log: list[str] = []
        self.subsystem = PortSubsystem(self._scanner, self._forwarder, LOG, self._release)

    def _release(self) -> None:
        self.released += 1

    def _scanner(self) -> Scanner:
        self.made += 1
        bench, number = self, self.made

        class Counted(Scanner):
            async def run(self) -> None:
                bench.scanning += 1
                bench.log.append(f"scan {number}")
                try:
                    if bench.fail:
                        raise RuntimeError("broken")
                    await super().run()
                finally:
                    bench.scanning -= 1

        return Counted(LOG, self._read, self._sleep)

    def _forwarder(self) -> Forwarder:
        bench, number = self, self.made

        class Counted(Forwarder):
            async def stop(self) -> None:
                if bench.hold is not None:
                    await bench.hold.wait()
                await super().stop()
                bench.forwarding -= 1
                bench.log.append(f"gone {number}")

        self.forwarding += 1
        return Counted("socat", "1.2.3.4", frozenset(), LOG)

    def _read(self) -> Scan:
        self.scans += 1
        return frozenset()

    async def _sleep(self, _: float) -> None:
        for _ in range(3):
            await asyncio.sleep(0)


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_start_twice_makes_one_scanner() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.subsystem:
            await bench.subsystem.start()
            await bench.subsystem.start()
            await turns()
            assert (bench.made, bench.scanning, bench.forwarding) == (1, 1, 1)
            assert bench.subsystem.running
            assert bench.scans > 1

    asyncio.run(main())


def test_stop_leaves_nothing_and_frees_memory_once() -> None:
    async def main() -> None:
        bench = Bench()
        before = len(asyncio.all_tasks())
        async with bench.subsystem:
            await bench.subsystem.stop()
            assert bench.released == 0
            await bench.subsystem.start()
            await turns()
            await bench.subsystem.stop()
            assert (bench.scanning, bench.forwarding, bench.released) == (0, 0, 1)
            assert len(asyncio.all_tasks()) == before
            assert not bench.subsystem.running
            scans = bench.scans
            await bench.subsystem.stop()
            await turns()
            assert bench.released == 1
            assert bench.scans == scans

    asyncio.run(main())


def test_it_starts_again_after_a_stop() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.subsystem:
            for cycle in range(1, 5):
                await bench.subsystem.restart()
                await turns()
                assert (bench.made, bench.scanning) == (cycle, 1)

    asyncio.run(main())


def test_leaving_the_context_ends_the_cycle() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.subsystem:
            await bench.subsystem.start()
            await turns()
        assert (bench.scanning, bench.forwarding) == (0, 0)

    asyncio.run(main())


def test_a_new_cycle_waits_for_the_dying_one_and_the_stop_does_not_wait_for_the_new_one() -> None:
    async def main() -> None:
        bench = Bench()
        bench.hold = asyncio.Event()
        async with bench.subsystem:
            await bench.subsystem.start()
            await turns()
            async with asyncio.TaskGroup() as group:
                stopping = group.create_task(bench.subsystem.stop())
                await turns()
                await bench.subsystem.start()  # cycle 2, while cycle 1 is dying
                await turns()
                assert bench.subsystem.running
                assert bench.log == ["scan 1"]
                assert not stopping.done()
                bench.hold.set()
            await turns()  # the stop is over although cycle 2 runs on
            assert bench.log == ["scan 1", "gone 1", "scan 2"]
            assert bench.scanning == 1

    asyncio.run(main())


def test_a_second_stop_does_not_return_before_the_first_cycle_is_gone() -> None:
    async def main() -> None:
        bench = Bench()
        bench.hold = asyncio.Event()
        async with bench.subsystem:
            await bench.subsystem.start()
            await turns()
            async with asyncio.TaskGroup() as group:
                group.create_task(bench.subsystem.stop())
                await turns()
                second = group.create_task(bench.subsystem.stop())
                await turns()
                assert not second.done()
                bench.hold.set()
            assert (bench.scanning, bench.forwarding, bench.released) == (0, 0, 1)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_concurrent_starts_and_stops(seed: int) -> None:
    async def main() -> None:
        bench = Bench()
        choice = random.Random(seed)
        before = len(asyncio.all_tasks())
        async with bench.subsystem:
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                for _ in range(100):
                    group.create_task(choice.choice((bench.subsystem.start, bench.subsystem.stop))())
                    await turns(choice.randrange(4))
            last = choice.choice((bench.subsystem.start, bench.subsystem.stop))
            await last()
            await turns()
            expected = 1 if last == bench.subsystem.start else 0
            assert (bench.scanning, bench.subsystem.running) == (expected, bool(expected))
            await bench.subsystem.stop()
            assert (bench.scanning, bench.forwarding) == (0, 0)
            assert len(asyncio.all_tasks()) == before

    asyncio.run(main())


def test_a_cycle_that_fails_can_be_started_again() -> None:
    async def main() -> None:
        bench = Bench()
        bench.fail = True
        async with bench.subsystem:
            await bench.subsystem.start()
            await turns()
            assert not bench.subsystem.running
            assert bench.forwarding == 0
            bench.fail = False
            await bench.subsystem.start()
            await turns()
            assert bench.scanning == 1

    asyncio.run(main())


def test_a_stop_whose_caller_goes_away_still_stops() -> None:
    async def main() -> None:
        bench = Bench()
        bench.hold = asyncio.Event()
        async with bench.subsystem:
            await bench.subsystem.start()
            await turns()
            async with asyncio.TaskGroup() as group:
                caller = group.create_task(bench.subsystem.stop())
                await turns()
                caller.cancel()
            bench.hold.set()
            await turns()
            assert (bench.scanning, bench.forwarding) == (0, 0)

    asyncio.run(main())


def test_memory_is_given_back() -> None:
    release_memory()


def test_no_ports() -> None:
    async def main() -> None:
        async with NoPorts() as ports:
            await ports.start()
            await ports.stop()

    asyncio.run(main())
