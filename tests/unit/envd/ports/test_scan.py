from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from wrenn_sandbox.envd.ports.scan import FIRST_AFTER_S, PERIOD_S, Listener, Scan, Scanner, Tables, parse

HEAD = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LOG = logging.getLogger("test")


def line(local: str, state: str = "0A", inode: int = 7, rest: str = " 1 0000000000000000 100 0 0 10 0") -> bytes:
    remote = "0" * len(local.split(":", maxsplit=1)[0]) + ":0000"
    return (
        f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode}{rest}\n".encode()
    )


V6_LOOPBACK = "00000000000000000000000001000000"


def test_ipv4_is_one_little_endian_word() -> None:
    assert parse(HEAD + line("0100007F:1F90", inode=42)) == {Listener(8080, False, 42)}
    assert parse(HEAD + line("7F000001:1F90")) == frozenset()  # 1.0.0.127


def test_ipv6_is_four_little_endian_words() -> None:
    assert parse(HEAD + line(V6_LOOPBACK + ":0050", inode=9)) == {Listener(80, True, 9)}
    assert parse(HEAD + line("0" * 31 + "1:0050")) == frozenset()  # the word order of text, not of the kernel


def test_an_ipv4_address_in_an_ipv6_socket_counts_as_ipv4() -> None:
    assert parse(line("0000000000000000FFFF00000100007F:0050")) == {Listener(80, False, 7)}


@pytest.mark.parametrize("address", ["00000000", "1500FEA9", "0" * 32, "0200007F"])
def test_other_addresses_need_no_help(address: str) -> None:
    assert parse(HEAD + line(address + ":1F90")) == frozenset()


@pytest.mark.parametrize("state", ["01", "06", "02", "08"])
def test_only_listening_sockets(state: str) -> None:
    assert parse(HEAD + line("0100007F:1F90", state)) == frozenset()


def test_a_listening_code_in_another_column_does_not_count() -> None:
    assert parse(b"   0: 0100007F:1F90 00000000:0000 01 0A 0A 0A 0 0 7 1\n") == frozenset()


def test_short_and_odd_lines_are_skipped() -> None:
    short = b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0\n"
    assert len(short.split()) == 9
    assert parse(HEAD + short + b"\n" + b" 0A \n" + line("0100007F:0001")) == {Listener(1, False, 7)}
    assert parse(line("0100007F:1F90", rest="")) == {Listener(8080, False, 7)}  # ten fields are enough
    assert parse(b"") == frozenset()


def test_tables_are_read_together_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    assert read_once(tmp_path) == frozenset()
    (tmp_path / "tcp").write_bytes(HEAD + line("0100007F:1F90"))
    assert read_once(tmp_path) == {Listener(8080, False, 7)}
    (tmp_path / "tcp6").write_bytes(HEAD + line(V6_LOOPBACK + ":1F90", inode=8))
    assert read_once(tmp_path) == {Listener(8080, False, 7), Listener(8080, True, 8)}


def read_once(net: Path) -> Scan:
    tables = Tables(net)
    try:
        return tables.read()
    finally:
        tables.close()


def test_tables_stay_open_and_are_read_from_their_beginning(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_bytes(HEAD)
    tables = Tables(tmp_path)
    assert tables.read() == frozenset()
    (tmp_path / "tcp").write_bytes(HEAD + line("0100007F:1F90"))
    assert tables.read() == tables.read() == {Listener(8080, False, 7)}
    tables.close()
    assert tables.read() == frozenset()


def test_an_idle_guest_is_left_asleep() -> None:
    async def main() -> None:
        scans = [frozenset({Listener(1, False, 1)}), frozenset(), frozenset()]
        waits = 0
        worth_it = asyncio.Event()

        async def possible() -> None:
            nonlocal waits
            waits += 1
            await worth_it.wait()

        scanner = Scanner(LOG, lambda: scans.pop(0), Clock(1000), possible)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(scanner.run())
            for _ in range(50):
                await asyncio.sleep(0)
            assert (len(scans), waits) == (1, 1)  # what was seen is followed until it is gone; then it sleeps
            worth_it.set()
            while scans:
                await asyncio.sleep(0)
            task.cancel()
        assert waits == 2

    asyncio.run(main())


class Clock:
    """A sleep that returns at once and remembers; it stops the scanner after ``limit`` calls by never returning."""

    def __init__(self, limit: int) -> None:
        self.slept: list[float] = []
        self.exhausted = asyncio.Event()
        self._limit = limit

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) >= self._limit:
            self.exhausted.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


def test_every_subscriber_gets_every_scan_in_order() -> None:
    async def main() -> None:
        scans = [frozenset({Listener(n, False, n)}) for n in range(3)]
        left = list(scans)
        clock = Clock(4)
        scanner = Scanner(LOG, lambda: left.pop(0), clock)
        got: list[list[Scan]] = [[], []]

        async def follow(into: list[Scan]) -> None:
            async for scan in scanner.subscribe().scans():
                into.append(scan)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(follow(into)) for into in got]
            await asyncio.sleep(0)
            tasks.append(group.create_task(scanner.run()))
            await clock.exhausted.wait()
            for task in tasks:
                task.cancel()
        assert got == [scans, scans]
        assert clock.slept == [FIRST_AFTER_S, PERIOD_S, PERIOD_S, PERIOD_S]

    asyncio.run(main())


def test_a_subscriber_that_never_reads_does_not_hold_a_cancelled_scanner() -> None:
    async def main() -> None:
        reads = 0

        def read() -> Scan:
            nonlocal reads
            reads += 1
            return frozenset()

        scanner = Scanner(LOG, read, Clock(1000))
        scanner.subscribe()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(scanner.run())
            for _ in range(50):
                await asyncio.sleep(0)
            assert reads == 1  # handed over, not queued: the second scan waits for the first to be taken
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        for _ in range(10):
            await asyncio.sleep(0)
        assert reads == 1

    asyncio.run(main())


def test_a_failed_scan_is_not_the_last() -> None:
    async def main() -> None:
        results: list[Scan | Exception] = [OSError("busy"), ValueError("odd"), frozenset({Listener(1, False, 1)})]

        def read() -> Scan:
            result = results.pop(0)
            if isinstance(result, Exception):
                raise result
            return result

        scanner = Scanner(LOG, read, Clock(10))
        subscriber = scanner.subscribe()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(scanner.run())
            async for scan in subscriber.scans():
                assert scan == {Listener(1, False, 1)}
                break
            task.cancel()

    asyncio.run(main())
