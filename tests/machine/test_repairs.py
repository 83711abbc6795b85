"""The host agent is killed in the middle of each operation; what was begun is settled, and can be done again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.machine.conftest import clean_platform, nothing_left
from tests.machine.underway import CREATE, DESTROY, FORK, PAUSE, RESUME, ROLLBACK, SNAPSHOT, Operation, Stage, stage_on
from tests.running import Platform

#: `wrenn up` gives up a child that ends a fifth time in five minutes: so many kills a platform.
KILLS = 4


@pytest.fixture(scope="class")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform whose agent may be killed."""
    data_dir = tmp_path_factory.mktemp("mortal")
    data_dir.chmod(0o711)
    with clean_platform(data_dir, "wtx") as running:
        yield running


@pytest.fixture
def stage(mortal: Platform) -> Iterator[Stage]:
    with nothing_left(mortal), stage_on(mortal) as here:
        yield here


def killed_in_the_middle(stage: Stage, operation: Operation) -> None:
    """Kill the agent when there is a sign of the operation; then it was done or not, and can be done again."""
    sandbox = operation.prepare(stage)
    agent = stage.wrenn.pid_of("hostagent")
    request, _ = operation.begin(stage, sandbox)
    os.kill(agent, signal.SIGKILL)
    assert request.answer().said == (503, "host_unavailable")
    settled(stage, operation, sandbox)
    operation.again(stage, sandbox)


def settled(stage: Stage, operation: Operation, sandbox: str) -> None:
    """The sandbox is as if the operation had been done, or as if it had never been begun."""
    if operation is DESTROY:
        operation.check(stage, sandbox)
    elif operation is RESUME:
        done = stage.await_status(sandbox, "running", "paused") == "running"
        (operation.check if done else operation.undone)(stage, sandbox)
    elif operation is ROLLBACK:
        assert stage.marks(sandbox) in {"past", "first"}
        stage.mark(sandbox, "first")
    else:  # a pause that was not durable leaves it running; children that nobody heard of have no right to be
        operation.undone(stage, sandbox)


class TestOne:
    @pytest.mark.parametrize("file", ["state", "disk.qcow2"], ids=["standing still", "being made durable"])
    def test_pause(self, stage: Stage, file: str) -> None:
        killed_in_the_middle(stage, replace(PAUSE, sign=lambda signs: signs.draft(file)))

    def test_resume(self, stage: Stage) -> None:
        killed_in_the_middle(stage, RESUME)

    def test_snapshot(self, stage: Stage) -> None:
        killed_in_the_middle(stage, SNAPSHOT)


class TestTwo:
    @pytest.mark.parametrize("operation", [CREATE, FORK, ROLLBACK, DESTROY], ids=lambda each: each.name)
    def test_it(self, stage: Stage, operation: Operation) -> None:
        killed_in_the_middle(stage, operation)
