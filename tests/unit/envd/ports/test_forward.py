from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from wrenn_sandbox.envd.ports.forward import BACKOFF_SCANS, Forwarder, socat_argv, wanted
from wrenn_sandbox.envd.ports.scan import Listener, Scan, Subscriber

LOG = logging.getLogger("test")
V4, V6 = Listener(80, False, 1), Listener(80, True, 2)


class Socat:
    """A process that runs until it is killed or told to end."""

    def __init__(self, argv: list[str], pid: int) -> None:
        self.argv = argv
        self.pid = pid
        self.kills = 0
        self.waits = 0
        self._ended = asyncio.Event()
        self._code = 0

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    def end(self, code: int) -> None:
        self._code = code
        self._ended.set()

    def kill(self) -> None:
        if self.running:
            self.kills += 1
            self.end(-9)

    async def wait(self) -> int:
        self.waits += 1
        await self._ended.wait()
        return self._code


class Bench:
    """A forwarder over such processes."""

    def __init__(self) -> None:
        self.started: list[Socat] = []
        self.refuse = False
        self.forwarder = Forwarder("socat", "1.2.3.4", frozenset({49983}), LOG, self._start)

    def _start(self, argv: list[str]) -> Socat:
        if self.refuse:
            raise FileNotFoundError("socat")
        assert all(not s.running for s in self.started if s.argv[1] == argv[1]), "two socats on one port"
        self.started.append(Socat(argv, 1000 + len(self.started)))
        return self.started[-1]

    async def follow(self, *listeners: Listener) -> None:
        await self.forwarder.follow(frozenset(listeners))

    @property
    def running(self) -> list[str]:
        return [s.argv[-1] for s in self.started if s.running]


def test_commands() -> None:
    assert socat_argv("/t/socat", "169.254.0.21", 80, ipv6=False) == [
        "/t/socat",
        "TCP4-LISTEN:80,bind=169.254.0.21,reuseaddr,fork",
        "TCP4:127.0.0.1:80",
    ]
    assert socat_argv("socat", "169.254.0.21", 80, ipv6=True)[-1] == "TCP6:[::1]:80"


def test_what_is_wanted() -> None:
    scan: Scan = frozenset({V4, V6, Listener(81, True, 3), Listener(49983, False, 4)})
    assert wanted(scan, frozenset({49983})) == {80: False, 81: True}


def test_one_socat_for_each_port_as_long_as_it_is_listened_on() -> None:
    async def main() -> None:
        bench = Bench()
        other = Listener(81, True, 3)
        await bench.follow(V4)
        await bench.follow(V4, other)
        await bench.follow(V4, other)
        assert bench.running == ["TCP4:127.0.0.1:80", "TCP6:[::1]:81"]
        await bench.follow(other)
        assert bench.running == ["TCP6:[::1]:81"]
        assert list(bench.forwarder.entries) == [81]
        await bench.follow()
        assert bench.running == []
        assert bench.forwarder.entries == {}
        assert len(bench.started) == 2

    asyncio.run(main())


def test_a_server_on_both_families_gets_one_socat() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.follow(V4, V6)
        await bench.follow(V4, V6)
        assert bench.running == ["TCP4:127.0.0.1:80"]
        await bench.follow(V6)  # IPv4 gone: the way changes, the port stays
        assert bench.running == ["TCP6:[::1]:80"]
        await bench.follow(V4, V6)
        assert bench.running == ["TCP4:127.0.0.1:80"]

    asyncio.run(main())


def test_a_listener_that_was_replaced_between_scans_keeps_its_socat() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.follow(V4)
        await bench.follow(Listener(80, False, 99))
        assert len(bench.started) == 1

    asyncio.run(main())


def test_a_socat_that_cannot_bind_is_tried_again_ever_more_rarely() -> None:
    async def main() -> None:
        bench = Bench()
        attempts = []
        for scan in range(70):
            before = len(bench.started)
            await bench.follow(V4)
            if len(bench.started) > before:
                attempts.append(scan)
                bench.started[-1].end(1)
        gaps = [b - a for a, b in itertools.pairwise(attempts)]
        assert gaps == [*BACKOFF_SCANS, 30][: len(gaps)]
        assert len(gaps) >= 6
        assert len(bench.forwarder.entries) == 1

    asyncio.run(main())


def test_a_success_resets_the_back_off() -> None:
    async def main() -> None:
        bench = Bench()
        for _ in range(10):
            await bench.follow(V4)
            bench.started[-1].end(1)
        while not bench.running:
            await bench.follow(V4)
        await bench.follow(V4)
        assert bench.forwarder.entries[80].failures == 0
        bench.started[-1].end(1)
        count = len(bench.started)
        await bench.follow(V4)
        assert len(bench.started) == count + BACKOFF_SCANS[0]

    asyncio.run(main())


def test_a_missing_socat_is_not_fatal() -> None:
    async def main() -> None:
        bench = Bench()
        bench.refuse = True
        await bench.follow(V4)
        bench.refuse = False
        for _ in range(3):
            await bench.follow(V4)
        assert bench.running == ["TCP4:127.0.0.1:80"]

    asyncio.run(main())


def test_cancelling_kills_and_reaps_every_socat() -> None:
    async def main() -> None:
        bench = Bench()
        subscriber = Subscriber()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(bench.forwarder.run(subscriber))
            await subscriber.signal(frozenset({V4, Listener(81, True, 3)}))
            while len(bench.running) < 2:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        assert bench.running == []
        assert [s.kills for s in bench.started] == [1, 1]
        assert [s.waits for s in bench.started] == [1, 1]
        assert bench.forwarder.entries == {}

    asyncio.run(main())


def test_a_cancel_between_kill_and_reap_loses_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.follow(V4)
        socat = bench.started[0]
        socat.kill = lambda: None  # type: ignore[method-assign]  # dies late
        async with asyncio.TaskGroup() as group:
            task = group.create_task(bench.follow())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert list(bench.forwarder.entries) == [80]
        socat.end(-9)
        await bench.forwarder.stop()
        assert bench.forwarder.entries == {}

    asyncio.run(main())


@pytest.mark.parametrize("times", [1, 2])
def test_stop_of_nothing(times: int) -> None:
    async def main() -> None:
        bench = Bench()
        for _ in range(times):
            await bench.forwarder.stop()

    asyncio.run(main())
