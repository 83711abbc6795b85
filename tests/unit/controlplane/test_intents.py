from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from tests.contract.test_db import new_sandbox
from wrenn_sandbox.controlplane.agent import NotAsked
from wrenn_sandbox.controlplane.intents import intent, is_certain, template_of
from wrenn_sandbox.core.errors import Bug, Conflict, Timeout, Unavailable
from wrenn_sandbox.core.ids import BuildId, TeamId, TemplateId
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.db.builds import Kind, Status
from wrenn_sandbox.db.templates import Type

CURRENT, TEMPLATE = BuildId(UUID(int=3)), TemplateId(UUID(int=4))
ROW = new_sandbox(TeamId(UUID(int=1)), current_build_id=CURRENT, default_user="ada", envs={"A": "1"})


def test_every_intent_is_a_build_of_its_own() -> None:
    first, second = (intent(ROW, Kind.SNAPSHOT, name="n", template=TEMPLATE) for _ in range(2))
    assert first.id != second.id
    assert (first.sandbox_id, first.team_id, first.host_id) == (ROW.id, ROW.team_id, ROW.host_id)
    assert (first.status, first.parent_id, first.shape) == (Status.CREATING, CURRENT, ROW.shape)


def test_a_template_is_what_the_host_made_with_what_the_sandbox_had() -> None:
    intended = intent(ROW, Kind.SNAPSHOT, name="n", template=TEMPLATE)
    made = replace(intended, id=CURRENT, shape=Shape(4, 2048), size_bytes=9)
    template = template_of(ROW, intended, made)
    assert (template.id, template.name, template.type, template.build_id) == (TEMPLATE, "n", Type.SNAPSHOT, CURRENT)
    assert (template.shape, template.size_bytes, template.disk_size_mb) == (Shape(4, 2048), 9, ROW.disk_size_mb)
    assert (template.default_user, template.default_env, template.host_id) == ("ada", {"A": "1"}, ROW.host_id)


@pytest.mark.parametrize(
    ("error", "certain"),
    [
        (Conflict("x"), True),
        (Timeout("x", slug="guest_timeout"), True),
        (Unavailable("x", slug="agent_stopping"), True),
        (Bug("x"), True),
        (NotAsked("no host"), True),
        (Unavailable("no answer"), False),
        (RuntimeError("x"), False),
    ],
)
def test_only_an_answer_makes_certain(error: Exception, certain: bool) -> None:
    assert is_certain(error) is certain
