from __future__ import annotations

from uuid import UUID

import pytest

from tests.contract.test_db import new_sandbox
from wrenn_sandbox.controlplane.intents import intent
from wrenn_sandbox.controlplane.messages import (
    by_build,
    create_request,
    created_shape,
    is_held_by,
    sandboxes_of,
    seen,
    seen_build,
    settled,
)
from wrenn_sandbox.core.errors import Bug
from wrenn_sandbox.core.ids import BASE_TEMPLATE_ID, BuildId, SandboxId, TeamId, TemplateId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.db.builds import Kind
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

TEAM = TeamId(UUID(int=5))


def test_a_create_carries_everything_over_the_wire() -> None:
    row = new_sandbox(TEAM, default_user="root")
    sent = pb.CreateSandboxRequest.from_binary(create_request(row).to_binary())
    assert (sent.sandbox_id, sent.template, sent.team_id, sent.template_id) == (
        str(row.id),
        "base",
        str(TEAM.value),
        "",
    )
    assert (sent.vcpus, sent.memory_mb, sent.disk_size_mb) == (2, 1024, 2048)
    assert dict(sent.default_env) == {"A": "1"} and sent.access_token == "secret"
    assert sent.lifetime is not None and sent.network is not None
    assert sent.lifetime.ends_at_unix == row.lifetime.ends_at_unix_s
    assert (
        sent.lifetime.idle_action == pb.TimeoutAction.KILL and sent.lifetime.deadline_action == pb.TimeoutAction.PAUSE
    )
    assert (sent.build_id, sent.default_user) == ("", "root")
    assert sent.network.egress == pb.EgressMode.ALLOW_LIST and list(sent.network.allow_out) == ["203.0.113.0/24"]


def test_what_the_agent_sees_is_understood() -> None:
    row = new_sandbox(TEAM)
    info = pb.SandboxInfo(
        sandbox_id=str(row.id),
        status="error",
        reason="why",
        reason_slug="slug",
        vcpus=1,
        memory_mb=512,
        lifetime=create_request(row).lifetime,
    )
    entry = seen(info)
    assert entry is not None and (entry.id, entry.state, entry.reason, entry.slug) == (
        row.id,
        State.ERROR,
        "why",
        "slug",
    )
    assert entry.lifetime == row.lifetime and entry.shape == Shape(1, 512)


@pytest.mark.parametrize("info", [{"sandbox_id": "x", "status": "running"}, {"status": "resting"}])
def test_what_is_not_ours_is_left_out(info: dict[str, str]) -> None:
    identity = {"sandbox_id": str(SandboxId(UUID(int=1)))}
    assert seen(pb.SandboxInfo(**(identity | info))) is None


def test_a_smaller_machine_than_asked_for_is_a_bug() -> None:
    assert created_shape(pb.CreateSandboxResponse(), Shape(1, 512)) == Shape(1, 512)
    assert created_shape(pb.CreateSandboxResponse(vcpus=2, memory_mb=512), Shape(1, 512)) == Shape(2, 512)
    with pytest.raises(Bug):
        created_shape(pb.CreateSandboxResponse(vcpus=1, memory_mb=256), Shape(1, 512))


BUILD, PARENT = BuildId(UUID(int=1 << 100)), BuildId(UUID(int=2 << 100))


def test_a_template_goes_by_its_own_name_and_a_build_as_a_plain_uuid() -> None:
    platforms = new_sandbox(TEAM, template="minimal", template_id=BASE_TEMPLATE_ID)
    own = new_sandbox(TEAM, template="minimal", template_id=TemplateId(UUID(int=3)))
    assert create_request(platforms).template == "base"
    assert create_request(own, BUILD).template == "minimal"
    assert create_request(own, BUILD).build_id == str(BUILD.value)


def test_what_became_of_an_intent() -> None:
    row = new_sandbox(TEAM)
    intended = intent(row, Kind.PAUSE)
    message = pb.Build(
        build_id=str(BUILD.value),
        parent_id=str(PARENT.value),
        size_bytes=5,
        created_at_unix=1e9,
        vcpus=4,
        memory_mb=256,
    )
    made = settled(intended, message)
    assert (made.id, made.parent_id, made.size_bytes, made.shape) == (BUILD, PARENT, 5, Shape(4, 256))
    assert made.created_at.timestamp() == 1e9 and made.sandbox_id == row.id
    bare = settled(intended, pb.Build(build_id=str(BUILD.value)))
    assert (bare.parent_id, bare.shape, bare.created_at) == (None, row.shape, intended.created_at)
    for nothing in (None, pb.Build(), pb.Build(build_id="bld-1")):
        with pytest.raises(Bug):
            settled(intended, nothing)


def test_who_keeps_a_build() -> None:
    row, template = new_sandbox(TEAM), TemplateId(UUID(int=3))
    message = pb.Build(build_id=str(BUILD.value), holders=[str(row.id), str(template), "tpl-x", "x"], size_bytes=5)
    assert by_build([message, pb.Build(build_id="x")]) == {BUILD: message}
    found = seen_build(BUILD, message, {row.id})
    assert (found.id, found.templates, found.size_bytes, found.foreign) == (BUILD, {template}, 5, False)
    whose = pb.Build(build_id=str(BUILD.value), sandbox_id=str(row.id))
    assert sandboxes_of([message, whose, pb.Build(sandbox_id="x")]) == {row.id}
    assert [seen_build(BUILD, whose, ours).foreign for ours in ({row.id}, ())] == [False, True]
    assert is_held_by(message, row.id)
    assert not is_held_by(message, SandboxId(UUID(int=9))) and not is_held_by(None, row.id)
    info = pb.SandboxInfo(sandbox_id=str(row.id), status="paused", build_id=str(BUILD.value))
    entry = seen(info)
    assert entry is not None and (entry.state, entry.build) == (State.PAUSED, BUILD)
