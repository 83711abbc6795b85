"""Make a sandbox: the row first, then the machine; whatever happens in between, the row tells the truth afterwards."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

import structlog

from wrenn_sandbox.controlplane.messages import create_request, created_shape
from wrenn_sandbox.controlplane.platform import Platform, now
from wrenn_sandbox.core.errors import Bug, Conflict, Invalid, NotFound, Unavailable, WrennError
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Lifetime, NetworkPolicy, Shape, round_up
from wrenn_sandbox.db import sandboxes, templates
from wrenn_sandbox.db.sandboxes import Change, Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

#: The first sandbox of a new shape waits for its template to boot once, minutes under emulation.
CREATE_S = 600.0
#: For clean-up after a failed create; the reconciler does it later when this does not suffice.
CLEAN_UP_S = 15.0
#: What comes up on a host although its row says this is ended there.
UNWANTED = frozenset({State.STOPPING, State.STOPPED})

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks for, validated but not yet rounded."""

    template: str = "base"
    vcpus: int = 1
    memory_mb: int = 512
    disk_size_mb: int = 0
    lifetime: Lifetime = field(default_factory=Lifetime)
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    metadata: dict[str, str] = field(default_factory=dict)
    envs: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Phase:
    """How long one step took on the host."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Created:
    """The new sandbox, running."""

    sandbox: Sandbox
    phases: tuple[Phase, ...]


async def create_sandbox(platform: Platform, team: TeamId, wish: Wish) -> Created:
    """A running sandbox. A caller who goes away meanwhile leaves one that runs, or a row that says why it does not.

    Raises Invalid (``invalid_size``, ``disk_size_unsupported``), NotFound (``template_not_found``), or what the host
    agent says.
    """
    template = await _template(platform, team, wish.template)
    if wish.disk_size_mb not in (0, template.disk_size_mb):
        raise Invalid(
            "A sandbox has the root disk of its template, whose size cannot be chosen: leave disk_size_mb out.",
            slug="disk_size_unsupported",
        )
    # A moment fixes what the machine has: what is asked for then does not count, be it possible or not.
    baked = template.build_id is not None
    moment = now()
    row = Sandbox(
        id=SandboxId(uuid4()),
        team_id=team,
        host_id=platform.host_id,
        template=wish.template,
        template_id=template.id,
        state=State.PENDING,
        shape=template.shape if baked else round_up(wish.vcpus, wish.memory_mb),
        lifetime=wish.lifetime,
        network=wish.network,
        created_at=moment,
        last_updated=moment,
        metadata=wish.metadata,
        envs=template.default_env | wish.envs,
        access_token=secrets.token_hex(32),
        disk_size_mb=template.disk_size_mb,
        default_user=template.default_user,
        current_build_id=template.build_id,
    )
    return await platform.settling.finish(row.id, _make(platform, row))


async def _template(platform: Platform, team: TeamId, name: str) -> templates.Template:
    async with platform.db.read() as connection:
        template = await templates.by_name(connection, team, name)
    if template is None:
        raise NotFound(f"There is no template {name!r}; the built-in one is 'base'.", slug="template_not_found")
    if template.host_id not in (None, platform.host_id):
        raise Unavailable(f"The host that has the template {name!r} is not there now; it may come back.")
    return template


async def _make(platform: Platform, row: Sandbox) -> Created:
    async with platform.db.write() as connection:
        await sandboxes.add(connection, row)
    try:
        request = create_request(row, row.current_build_id)
        answer = await platform.agent.call("CreateSandbox", request, pb.CreateSandboxResponse, timeout_s=CREATE_S)
        shape = created_shape(answer, row.shape)
    except Exception as error:
        await _give_up(platform, row, error if isinstance(error, WrennError) else Bug("Making it failed."))
        raise
    return await _made(platform, row, answer, shape)


async def _made(platform: Platform, row: Sandbox, answer: pb.CreateSandboxResponse, shape: Shape) -> Created:
    change = Change(host_ip=answer.host_ip, shape=shape, started=True)
    async with platform.db.write() as connection:
        moved = await sandboxes.move(connection, row.id, {State.PENDING}, State.RUNNING, change)
        current = await sandboxes.get(connection, row.team_id, row.id)
    if not moved or current is None:
        current = await as_others_left_it(platform, current or row, "made")
    ticket = platform.rows.ticket()
    platform.rows.put(row.id, current, ticket)  # its first command follows at once
    return Created(current, tuple(Phase(phase.name, phase.ms) for phase in answer.phases))


async def _give_up(platform: Platform, row: Sandbox, error: WrennError) -> None:
    _log.warning("create failed", sandbox=str(row.id), slug=error.slug, reason=error.message)
    with suppress(WrennError):
        async with platform.db.write() as connection:
            change = Change(reason=error.message, slug=error.slug)
            moved = await sandboxes.move(connection, row.id, {State.PENDING}, State.ERROR, change)
            current = await sandboxes.get(connection, row.team_id, row.id)
        if not moved and current is not None and current.state not in UNWANTED:
            platform.rows.drop(row.id)
            return  # it runs, as another control plane found out although we had no answer
    await destroy_quietly(platform, row.id)


async def as_others_left_it(platform: Platform, current: Sandbox, doing: str) -> Sandbox:
    """A sandbox that runs on its host, and whose row another control plane moved on before us: it may be paused again.

    Raises Conflict when it was destroyed meanwhile, which is the one case in which the host has to end it, or failed.
    """
    if current.state in UNWANTED:
        await destroy_quietly(platform, current.id)
        raise Conflict(f"The sandbox was destroyed while it was being {doing}.", slug="sandbox_destroyed")
    if current.state is State.ERROR:
        raise Conflict(f"The sandbox failed while it was being {doing}. {current.status_reason}", slug="sandbox_ended")
    return current


async def destroy_quietly(platform: Platform, sandbox: SandboxId) -> None:
    """Have the host end what nobody wants any more; should that fail, the reconciler does it later."""
    platform.rows.drop(sandbox)
    with suppress(WrennError):
        request = pb.DestroySandboxRequest(sandbox_id=str(sandbox))
        await platform.agent.call("DestroySandbox", request, pb.DestroySandboxResponse, timeout_s=CLEAN_UP_S)
