"""A client goes away, or destroys the sandbox, in the middle of each operation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
)
from tests.running import Platform

ALL = [CREATE, PAUSE, RESUME, SNAPSHOT, FORK, ROLLBACK, DESTROY]


@pytest.fixture
def stage(wrenn: Platform) -> Iterator[Stage]:
    with stage_on(wrenn) as here:
        yield here


@pytest.mark.parametrize("operation", ALL, ids=lambda each: each.name)
def test_what_was_begun_goes_on_without_its_client(stage: Stage, operation: Operation) -> None:
    sandbox = operation.prepare(stage)
    request, _ = operation.begin(stage, sandbox)
    request.leave()
    operation.check(stage, sandbox)


@pytest.mark.parametrize("operation", ALL[:-1], ids=lambda each: each.name)
def test_a_destroy_wins(stage: Stage, operation: Operation) -> None:
    """Whether the operation came to its end before it or not, nothing is left of the sandbox."""
    sandbox = operation.prepare(stage)
    before = stage.sandboxes()
    request, _ = operation.begin(stage, sandbox)
    if operation is CREATE:
        (sandbox,) = stage.sandboxes() - before
    assert stage.call("DELETE", f"/v1/sandboxes/{sandbox}").status == 204
    answer = request.answer()
    stage.require_nothing_of(sandbox)
    assert stage.status(sandbox) == "stopped"
    others = stage.sandboxes() - {sandbox}
    if answer.status in {200, 201}:
        assert operation in {SNAPSHOT, FORK}, "what it was done to is gone"
        assert {stage.status(child) for child in others} <= {"running"}
    else:
        assert answer.said == (409, "sandbox_destroyed")
        for child in others:
            stage.await_status(child, "error")
            stage.require_nothing_of(child)
