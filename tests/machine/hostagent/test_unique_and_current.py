"""After a restore a guest is unique and current, however old its snapshot; and these tests notice when it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import Footprint
from tests.machine.hostagent.restores import TAG, Frozen, frozen, output
from wrenn_sandbox.hostagent.guest import Guest
from wrenn_sandbox.net.services import ntp

DAYS_S = 3 * 24 * 3600


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = Footprint.take().of(TAG)
    yield
    assert Footprint.take().of(TAG).left_behind(before) == {}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Frozen, Frozen]:
    """Two snapshots of one guest, both three days old by their clocks.

    In the first one chronyd runs as it does everywhere: to this guest, the host's clock stood there when it was frozen.
    In the second one it does not run.
    """
    true_answer = ntp.answer

    async def follow(guest: Guest) -> None:
        lag_ns = DAYS_S * 10**9
        ntp.answer = lambda asked, got, sent: true_answer(asked, got - lag_ns, sent - lag_ns)
        await output(guest, "date", "-s", f"@{time.time() - DAYS_S:.0f}")
        await asyncio.sleep(5)  # chronyd finds nothing to repair
        assert abs(time.time() - DAYS_S - float(await output(guest, "date", "+%s.%N"))) < 2

    async def age(guest: Guest) -> None:
        ntp.answer = true_answer
        await output(guest, "sh", "-c", f"pkill -STOP -f '[c]hronyd' && date -s @{time.time() - DAYS_S:.0f}")

    directory = tmp_path_factory.mktemp("frozen")
    directory.chmod(0o755)
    try:
        synchronised, old = asyncio.run(frozen(directory, follow, age))
    finally:
        ntp.answer = true_answer
    return synchronised, old


@pytest.fixture
def synchronised(both: tuple[Frozen, Frozen]) -> Frozen:
    return both[0]


@pytest.fixture
def old(both: tuple[Frozen, Frozen]) -> Frozen:
    return both[1]


async def _time_inside(old: Frozen, **duties: bool) -> tuple[float, float, float]:
    async with old.restored(**duties) as guest:
        before = time.time()
        inside = float(await output(guest, "date", "+%s.%N"))
        return before, inside, time.time()


def test_the_first_command_prints_the_hosts_time(old: Frozen) -> None:
    before, inside, after = asyncio.run(_time_inside(old))
    assert before - 1 <= inside <= after + 1


def test_without_the_step_the_clock_is_days_behind(old: Frozen) -> None:
    before, inside, _ = asyncio.run(_time_inside(old, clockStep=False))
    assert before - inside > DAYS_S - 3600


#: Prints when, by its own clock, this guest's time is no longer before that of argv[1].
WATCH = """
import sys, time
while time.time() < float(sys.argv[1]) - 1:
    time.sleep(0.02)
print(time.time())
"""


def test_chronyd_alone_repairs_the_clock_within_10_s(synchronised: Frozen) -> None:
    async def repaired() -> tuple[float, float, float, float]:
        restored_at = time.time()
        async with synchronised.restored(clockStep=False) as guest:
            right_at = float(await output(guest, "python3", "-c", WATCH, str(restored_at)))
            before = time.time()
            return right_at - restored_at, before, float(await output(guest, "date", "+%s.%N")), time.time()

    took_s, before, inside, after = asyncio.run(repaired())
    assert before - 1 <= inside <= after + 1
    assert took_s <= 10


async def _first_random(old: Frozen, count: int, **duties: bool) -> list[bytes]:
    found = []
    for _ in range(count):
        async with old.restored(**duties) as guest:
            found.append(await output(guest, "head", "-c", "32", "/dev/urandom"))
    return found


def test_first_reads_of_urandom_differ(old: Frozen) -> None:
    found = asyncio.run(_first_random(old, 3))
    assert len(set(found)) == 3


def test_without_the_reseed_they_do_not(old: Frozen) -> None:
    found = asyncio.run(_first_random(old, 4, reseed=False))
    assert len(set(found)) < 4


def test_machine_ids_differ(old: Frozen) -> None:
    async def identities() -> set[bytes]:
        found = set()
        for _ in range(2):
            async with old.restored() as guest:
                found.add(await output(guest, "cat", "/etc/machine-id"))
        return found

    assert len(asyncio.run(identities())) == 2


def test_the_frozen_files_are_never_written(old: Frozen) -> None:
    def stamps() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in Path(old.directory).iterdir()}

    before = stamps()

    async def write() -> None:
        async with old.restored() as guest:
            await output(guest, "sh", "-c", "head -c 20000000 /dev/urandom > /root/x; sync")

    asyncio.run(write())
    assert stamps() == before
