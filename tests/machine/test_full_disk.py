"""The host's disk is full: every operation fails as it promises, and costs nothing; the next one succeeds with room.

The data directory is a small tmpfs, logs and all; only the database, which may be anywhere, is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machine.conftest import clean_platform, nothing_left
from tests.machine.underway import (
    CREATE,
    DESTROY,
    FORK,
    PAUSE,
    RESUME,
    ROLLBACK,
    SNAPSHOT,
    Operation,
    Stage,
    stage_on,
    until,
)
from tests.small_disk import SmallDisk, small_disk

FULL = (503, "host_disk_full")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk") / "small") as made:
        yield made


@pytest.fixture(scope="module")
def full_platform(disk: SmallDisk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    database = tmp_path_factory.mktemp("database") / "wrenn.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WRENN_MIN_DISK_MIB", "0")
        patch.setenv("WRENN_MIN_DISK_FRACTION", "0")
        with clean_platform(disk.path, "wtd", "--database-url", f"sqlite+aiosqlite:///{database}") as running:
            yield running


@pytest.fixture
def stage(full_platform, disk: SmallDisk) -> Iterator[Stage]:
    with nothing_left(full_platform), stage_on(full_platform) as here:
        yield here
        disk.leave()


def test_a_pause_fails_until_there_is_room(stage: Stage, disk: SmallDisk) -> None:
    """With ever more room it comes ever further: to the state, the memory, its header, the manifest, the hold."""
    sandbox = stage.marked()
    stage.wrenn.sh(sandbox, "sync")
    failures = 0
    for pages in (0, 1, 2, 4, 16, 64, 256, 1024, 4096, 16384):
        disk.leave(pages=pages)
        answer = PAUSE.request(stage, sandbox).answer()
        if answer.status == 200:
            break
        assert answer.said == FULL, pages
        failures += 1
        disk.leave()  # for its guest, too, which writes a little all the time
        PAUSE.undone(stage, sandbox)
    assert failures >= 4
    disk.leave()
    PAUSE.check(stage, sandbox)


@pytest.mark.parametrize("operation", [CREATE, RESUME, SNAPSHOT, FORK, ROLLBACK], ids=lambda each: each.name)
@pytest.mark.parametrize("room", ["no page", "no file"])
def test_it_fails_and_costs_nothing(stage: Stage, disk: SmallDisk, operation: Operation, room: str) -> None:
    sandbox = operation.prepare(stage)
    if operation is ROLLBACK:  # its snapshot's memory is laid flat behind it, which takes room and gives it back
        until(lambda: list(disk.path.glob("builds/*/memory.flat")) and not list(disk.path.glob("builds/.*")))
    if room == "no page":
        disk.leave(pages=0)
    else:
        disk.leave(files=0)
    assert operation.request(stage, sandbox).answer().said == FULL
    disk.leave()
    operation.undone(stage, sandbox)
    operation.again(stage, sandbox)


def test_a_destroy_needs_no_room(stage: Stage, disk: SmallDisk) -> None:
    sandbox = RESUME.prepare(stage)
    assert RESUME.request(stage, sandbox).answer().status == 200
    disk.leave(pages=0, files=0)
    assert DESTROY.request(stage, sandbox).answer().status == 204
    DESTROY.check(stage, sandbox)


def test_a_guest_that_finds_no_room_waits_for_it(stage: Stage, disk: SmallDisk) -> None:
    sandbox = stage.marked()
    disk.leave(pages=0)
    write = "head -c 8000000 /dev/urandom >/home/user/new; sync; sha256sum </home/user/new >/home/user/sum"
    stage.wrenn.sh(sandbox, f"({write}; touch /dev/shm/done) >/dev/null 2>&1 &")
    answer = PAUSE.request(stage, sandbox).answer()
    assert answer.said == FULL
    disk.leave()
    PAUSE.undone(stage, sandbox)
    look = "test -e /dev/shm/done && sha256sum </home/user/new | cmp - /home/user/sum && echo same"
    stage.wrenn.sh(sandbox, f"for i in $(seq 100); do test -e /dev/shm/done && break; sleep 0.1; done; {look}")
    PAUSE.again(stage, sandbox)
