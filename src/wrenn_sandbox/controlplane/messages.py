"""Between our records and the host agent's messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from wrenn_sandbox.core.errors import Bug, Invalid
from wrenn_sandbox.core.ids import BASE_TEMPLATE_ID, BuildId, SandboxId, TeamId, TemplateId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.reconcile import Seen, SeenBuild
from wrenn_sandbox.core.spec import Egress, Lifetime, NetworkPolicy, Shape, TimeoutAction
from wrenn_sandbox.db.builds import Build
from wrenn_sandbox.db.sandboxes import Sandbox
from wrenn_sandbox.db.templates import ALIASES
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


def create_request(sandbox: Sandbox, build: BuildId | None = None) -> pb.CreateSandboxRequest:
    """What the agent needs to make ``sandbox``, from ``build`` when there is one; the template under its own name."""
    return pb.CreateSandboxRequest(
        template=_own_name(sandbox),
        vcpus=sandbox.shape.vcpus,
        memory_mb=sandbox.shape.memory_mib,
        timeout_sec=sandbox.lifetime.idle_timeout_s,
        sandbox_id=str(sandbox.id),
        disk_size_mb=sandbox.disk_size_mb,
        team_id=plain_uuid(sandbox.team_id),
        template_id=plain_uuid(sandbox.template_id),
        build_id=str(build.value) if build else "",
        default_user=sandbox.default_user,
        default_env=sandbox.envs,
        lifetime=lifetime_message(sandbox.lifetime),
        network=network_message(sandbox.network),
        access_token=sandbox.access_token,
    )


def _own_name(sandbox: Sandbox) -> str:
    """The name of its template, which the user may have called by an alias."""
    return (
        ALIASES.get(sandbox.template, sandbox.template) if sandbox.template_id == BASE_TEMPLATE_ID else sandbox.template
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
        build=_build_id(info.build_id),
        current=_build_id(info.current_build_id),
        stalled=info.stalled,
    )


def settled(intent: Build, message: pb.Build | None) -> Build:
    """What became of an intent, as the agent says; of a paused sandbox the build may be the one there was.

    Raises Bug when the agent says nothing that can be understood.
    """
    build = _build_id(message.build_id) if message else None
    if message is None or build is None:
        raise Bug("The host made a build and does not say which.")
    return replace(
        intent,
        id=build,
        parent_id=_build_id(message.parent_id),
        size_bytes=message.size_bytes,
        shape=Shape(message.vcpus, message.memory_mb) if message.vcpus and message.memory_mb else intent.shape,
        created_at=datetime.fromtimestamp(message.created_at_unix, UTC)
        if message.created_at_unix
        else intent.created_at,
    )


def is_held_by(message: pb.Build | None, sandbox: SandboxId) -> bool:
    """Whether the sandbox itself keeps the build, so that it can be resumed from it."""
    return message is not None and str(sandbox) in message.holders


def by_build(messages: Iterable[pb.Build]) -> dict[BuildId, pb.Build]:
    """What the agent says of its builds, without those that are not ours to understand."""
    return {build: message for message in messages if (build := _build_id(message.build_id)) is not None}


def sandboxes_of(messages: Iterable[pb.Build]) -> set[SandboxId]:
    """Whose moments the builds are."""
    return {sandbox for message in messages if (sandbox := _sandbox_id(message.sandbox_id)) is not None}


def seen_build(build: BuildId, message: pb.Build, ours: Collection[SandboxId]) -> SeenBuild:
    """What the agent says of one build; ``ours`` are the sandboxes that have a row."""
    sandbox = _sandbox_id(message.sandbox_id)
    foreign = sandbox is not None and sandbox not in ours
    return SeenBuild(build, frozenset(_templates(message.holders)), message.size_bytes, foreign)


def _templates(holders: Iterable[str]) -> Iterator[TemplateId]:
    for holder in holders:
        if holder.startswith(f"{TemplateId.prefix}-"):
            try:
                yield TemplateId.parse(holder)
            except Invalid:
                continue


def _build_id(text: str) -> BuildId | None:
    """A build's id, which travels as a plain UUID; None for nothing and for anything else."""
    try:
        return BuildId(UUID(text))
    except ValueError:
        return None


def _sandbox_id(text: str) -> SandboxId | None:
    """None for nothing and for anything else."""
    try:
        return SandboxId.parse(text)
    except Invalid:
        return None


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
