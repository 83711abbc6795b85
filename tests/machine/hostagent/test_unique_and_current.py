"""After a restore a guest is unique and current, however old its snapshot; and these tests notice when it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import Footprint
from tests.machine.hostagent.restores import Frozen, frozen, output
from wrenn_sandbox.hostagent.guest import Guest

DAYS_S = 3 * 24 * 3600


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = Footprint.take()
    yield
    assert Footprint.take().left_behind(before) == {}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    """A snapshot three days old: its clock stood there when it was frozen, and its chronyd does not run."""

    async def age(guest: Guest) -> None:
        await output(guest, "sh", "-c", f"pkill -STOP -f '[c]hronyd' && date -s @{time.time() - DAYS_S:.0f}")

    directory = tmp_path_factory.mktemp("old")
    directory.chmod(0o755)
    return asyncio.run(frozen(directory, age))


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


def test_chronyd_alone_repairs_the_clock(old: Frozen) -> None:
    async def repaired() -> float:
        async with old.restored(clockStep=False) as guest:
            await output(guest, "pkill", "-CONT", "-f", "[c]hronyd")
            deadline = time.monotonic() + 60
            while abs(behind := time.time() - float(await output(guest, "date", "+%s.%N"))) > 1:
                assert time.monotonic() < deadline, behind
                await asyncio.sleep(0.2)
            return behind

    assert abs(asyncio.run(repaired())) <= 1


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
