from __future__ import annotations

from uuid import UUID

import pytest

from tests.contract.test_db import new_sandbox
from wrenn_sandbox.controlplane.messages import create_request, created_shape, seen
from wrenn_sandbox.core.errors import Bug
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

TEAM = TeamId(UUID(int=5))


def test_a_create_carries_everything_over_the_wire() -> None:
    row = new_sandbox(TEAM)
    sent = pb.CreateSandboxRequest.from_binary(create_request(row, "base").to_binary())
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
        lifetime=create_request(row, "base").lifetime,
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
