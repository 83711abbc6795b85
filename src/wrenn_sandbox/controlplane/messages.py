"""Between our records and the host agent's messages."""

from __future__ import annotations

from wrenn_sandbox.core.errors import Bug, Invalid
from wrenn_sandbox.core.ids import SandboxId, TeamId, TemplateId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.reconcile import Seen
from wrenn_sandbox.core.spec import Egress, Lifetime, NetworkPolicy, Shape, TimeoutAction
from wrenn_sandbox.db.sandboxes import Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

_ACTION = {
    TimeoutAction.KILL: pb.TimeoutAction.KILL,
    TimeoutAction.PAUSE: pb.TimeoutAction.PAUSE,
}
_EGRESS = {
    Egress.OPEN: pb.EgressMode.OPEN,
    Egress.CLOSED: pb.EgressMode.CLOSED,
    Egress.ALLOW_LIST: pb.EgressMode.ALLOW_LIST,
}


def create_request(sandbox: Sandbox, template_name: str) -> pb.CreateSandboxRequest:
    """What the agent needs to make ``sandbox``; ``template_name`` is the template's own name, not an alias."""
    return pb.CreateSandboxRequest(
        template=template_name,
        vcpus=sandbox.shape.vcpus,
        memory_mb=sandbox.shape.memory_mib,
        timeout_sec=sandbox.lifetime.idle_timeout_s,
        sandbox_id=str(sandbox.id),
        disk_size_mb=sandbox.disk_size_mb,
        team_id=plain_uuid(sandbox.team_id),
        template_id=plain_uuid(sandbox.template_id),
        default_env=sandbox.envs,
        lifetime=lifetime_message(sandbox.lifetime),
        network=network_message(sandbox.network),
        access_token=sandbox.access_token,
    )


def plain_uuid(entity: TeamId | TemplateId) -> str:
    """Teams and templates travel as plain UUIDs, all zeros as nothing."""
    return str(entity.value) if entity.value.int else ""


def lifetime_message(lifetime: Lifetime) -> pb.Lifetime:
    """Idle timeout and deadline."""
    return pb.Lifetime(
        idle_timeout_s=lifetime.idle_timeout_s,
        idle_action=_ACTION[lifetime.idle_action],
        ends_at_unix=lifetime.ends_at_unix_s,
        deadline_action=_ACTION[lifetime.deadline_action],
    )


def network_message(policy: NetworkPolicy) -> pb.NetworkPolicy:
    """What may be reached."""
    return pb.NetworkPolicy(
        egress=_EGRESS[policy.egress], allow_out=list(policy.allow_out), deny_out=list(policy.deny_out)
    )


def seen(info: pb.SandboxInfo) -> Seen | None:
    """What the agent says of a sandbox; None for an entry that is not ours to understand."""
    try:
        sandbox, state = SandboxId.parse(info.sandbox_id), State(info.status)
    except (Invalid, ValueError):
        return None
    return Seen(
        id=sandbox,
        state=state,
        lifetime=_lifetime(info.lifetime) if info.lifetime else None,
        reason=info.reason,
        slug=info.reason_slug,
        progress=info.progress,
        host_ip=info.host_ip,
        shape=Shape(info.vcpus, info.memory_mb) if info.vcpus and info.memory_mb else None,
    )


def _lifetime(message: pb.Lifetime) -> Lifetime:
    action = {value: key for key, value in _ACTION.items()}
    return Lifetime(
        idle_timeout_s=message.idle_timeout_s,
        idle_action=action.get(message.idle_action, TimeoutAction.PAUSE),
        ends_at_unix_s=message.ends_at_unix,
        deadline_action=action.get(message.deadline_action, TimeoutAction.KILL),
    )


def created_shape(answer: pb.CreateSandboxResponse, asked: Shape) -> Shape:
    """The shape after rounding up. Raises Bug when the host made something smaller than asked."""
    shape = Shape(answer.vcpus or asked.vcpus, answer.memory_mb or asked.memory_mib)
    if shape.vcpus < asked.vcpus or shape.memory_mib < asked.memory_mib:
        raise Bug(f"The host made {shape} where {asked} was asked for.")
    return shape
