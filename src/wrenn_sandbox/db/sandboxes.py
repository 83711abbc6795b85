"""Sandboxes: the row that states what is wanted, and what the host made of it.

Every change of state names the state it expects (``move``), so that of two who want to change a row one wins and the
other is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, exists, func, insert, literal, select, tuple_, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from wrenn_sandbox.core.ids import BuildId, HostId, SandboxId, TeamId, TemplateId
from wrenn_sandbox.core.lifecycle import TRANSITIONS, State
from wrenn_sandbox.core.spec import Egress, Lifetime, NetworkPolicy, Shape, TimeoutAction
from wrenn_sandbox.db.tables import sandboxes

#: States in which a sandbox is history: not listed unless asked for.
ENDED = frozenset({State.STOPPED, State.ERROR})
#: Ids in one query; databases bound the parameters of a statement (SQLite: 32766).
_MAX_BOUND = 1000


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox as stored. ``template`` is the name as its user wrote it; ``access_token`` guards its envd.

    ``build_id`` is the newest durable moment of its own, which it can resume from; ``current_build_id`` the build that
    its present state descends from, of its own or not. None for one that knows nothing but its base template.
    ``intended_build_id`` states an intent: a running one shall be rolled back to this build, a pending one be born of
    the fork that makes it, together with all that name it.
    """

    id: SandboxId
    team_id: TeamId
    host_id: HostId
    template: str
    template_id: TemplateId
    state: State
    shape: Shape
    lifetime: Lifetime
    network: NetworkPolicy
    created_at: datetime
    last_updated: datetime
    metadata: dict[str, str] = field(default_factory=dict)
    envs: dict[str, str] = field(default_factory=dict, repr=False)
    access_token: str = field(default="", repr=False)
    disk_size_mb: int = 0
    host_ip: str = ""
    status_reason: str = ""
    status_slug: str = ""
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    last_active_at: datetime | None = None
    default_user: str = ""
    build_id: BuildId | None = None
    current_build_id: BuildId | None = None
    intended_build_id: BuildId | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a move writes beside the new state; None leaves a column as it is."""

    reason: str = ""
    slug: str = ""
    host_ip: str | None = None
    shape: Shape | None = None
    started: bool = False
    lifetime: Lifetime | None = None
    build_id: BuildId | None = None
    current_build_id: BuildId | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What to list: at most ``limit`` rows, newest first, strictly after the row ``(created_at, id)`` of ``after``."""

    limit: int
    after: tuple[datetime, UUID] | None = None
    states: frozenset[State] = frozenset(State) - ENDED
    metadata: Mapping[str, str] = field(default_factory=dict)


async def add(connection: AsyncConnection, sandbox: Sandbox) -> None:
    """Write a new row."""
    await connection.execute(
        insert(sandboxes).values(
            id=sandbox.id.value,
            team_id=sandbox.team_id.value,
            host_id=sandbox.host_id.value,
            template=sandbox.template,
            template_id=sandbox.template_id.value,
            status=sandbox.state.value,
            vcpus=sandbox.shape.vcpus,
            memory_mb=sandbox.shape.memory_mib,
            disk_size_mb=sandbox.disk_size_mb,
            access_token=sandbox.access_token,
            metadata=sandbox.metadata,
            network=_network_json(sandbox.network),
            envs=sandbox.envs,
            default_user=sandbox.default_user,
            build_id=sandbox.build_id.value if sandbox.build_id else None,
            current_build_id=sandbox.current_build_id.value if sandbox.current_build_id else None,
            intended_build_id=sandbox.intended_build_id.value if sandbox.intended_build_id else None,
            created_at=sandbox.created_at,
            last_updated=sandbox.last_updated,
            **_lifetime_columns(sandbox.lifetime),
        )
    )


async def get(connection: AsyncConnection, team: TeamId, sandbox: SandboxId) -> Sandbox | None:
    """A sandbox of a team, in whatever state."""
    query = select(sandboxes).where(sandboxes.c.team_id == team.value, sandboxes.c.id == sandbox.value)
    row = (await connection.execute(query)).one_or_none()
    return _record(row) if row else None


async def get_of_any_team(connection: AsyncConnection, sandbox: SandboxId) -> Sandbox | None:
    """A sandbox whoever owns it: for the port proxy, whose callers are the public."""
    row = (await connection.execute(select(sandboxes).where(sandboxes.c.id == sandbox.value))).one_or_none()
    return _record(row) if row else None


async def some_of_any_team(connection: AsyncConnection, ids: Iterable[SandboxId]) -> list[Sandbox]:
    """Those of the sandboxes that have a row, whoever owns them and whatever their state: for the reconciler."""
    wanted = [sandbox.value for sandbox in ids]
    found: list[Sandbox] = []
    for first in range(0, len(wanted), _MAX_BOUND):
        query = select(sandboxes).where(sandboxes.c.id.in_(wanted[first : first + _MAX_BOUND]))
        found += [_record(row) for row in await connection.execute(query)]
    return found


async def page(connection: AsyncConnection, team: TeamId, wanted: Page) -> list[Sandbox]:
    """One page of a team's sandboxes."""
    conditions: list[ColumnElement[bool]] = [
        sandboxes.c.team_id == team.value,
        sandboxes.c.status.in_([state.value for state in wanted.states]),
    ]
    if wanted.after is not None:
        created_at, sandbox = wanted.after
        position = tuple_(sandboxes.c.created_at, sandboxes.c.id)
        conditions.append(position < tuple_(*_bound(created_at, sandbox)))
    conditions += [_has_label(connection.dialect.name, key, value) for key, value in wanted.metadata.items()]
    query = select(sandboxes).where(*conditions)
    query = query.order_by(sandboxes.c.created_at.desc(), sandboxes.c.id.desc()).limit(wanted.limit)
    return [_record(row) for row in await connection.execute(query)]


async def of_host(connection: AsyncConnection, host: HostId, states: Collection[State]) -> list[Sandbox]:
    """All sandboxes of a host in some states, of every team: for the reconciler."""
    query = select(sandboxes).where(
        sandboxes.c.host_id == host.value, sandboxes.c.status.in_([state.value for state in states])
    )
    return [_record(row) for row in await connection.execute(query)]


async def resumable_failures(connection: AsyncConnection, host: HostId) -> list[Sandbox]:
    """Sandboxes of a host that failed and can be resumed from a durable build, of every team: for the reconciler."""
    query = select(sandboxes).where(
        sandboxes.c.host_id == host.value,
        sandboxes.c.status == State.ERROR.value,
        sandboxes.c.build_id.is_not(None),
    )
    return [_record(row) for row in await connection.execute(query)]


async def move(
    connection: AsyncConnection,
    sandbox: SandboxId,
    expected: Collection[State],
    state: State,
    change: Change = Change(),
    *,
    unchanged_since: datetime | None = None,
) -> bool:
    """Change the state if it still is one of ``expected`` (and the row unchanged); false when another was faster.

    What was intended of it is settled by that, unless its host is merely out of sight.
    Raises ValueError for a move that the lifecycle does not know.
    """
    if strange := [s for s in expected if state not in TRANSITIONS[s]]:
        raise ValueError(f"no way from {strange} to {state}")
    now = datetime.now(UTC)
    values: dict[str, object] = {
        "status": state.value,
        "status_reason": change.reason,
        "status_slug": change.slug,
        "last_updated": now,
    }
    if change.host_ip is not None:
        values["host_ip"] = change.host_ip
    if change.shape is not None:
        values |= {"vcpus": change.shape.vcpus, "memory_mb": change.shape.memory_mib}
    if change.started:
        values |= {"started_at": now, "last_active_at": now}
    if change.lifetime is not None:
        values |= _lifetime_columns(change.lifetime)
    if change.build_id is not None:
        values["build_id"] = change.build_id.value
    if change.current_build_id is not None:
        values["current_build_id"] = change.current_build_id.value
    if State.MISSING not in {state, *expected}:
        values["intended_build_id"] = None
    values["stopped_at"] = now if state in ENDED else None
    conditions = [sandboxes.c.id == sandbox.value, sandboxes.c.status.in_([s.value for s in expected])]
    if unchanged_since is not None:
        conditions.append(sandboxes.c.last_updated == unchanged_since)
    return (await connection.execute(update(sandboxes).where(*conditions).values(**values))).rowcount == 1


async def note(connection: AsyncConnection, sandbox: SandboxId, expected: State, reason: str) -> None:
    """Say what a sandbox in transition waits for; its state and its age stay."""
    query = update(sandboxes).where(sandboxes.c.id == sandbox.value, sandboxes.c.status == expected.value)
    await connection.execute(query.values(status_reason=reason))


async def begin_rollback(connection: AsyncConnection, sandbox: SandboxId, build: BuildId) -> bool:
    """State the intent to put a running sandbox back to a build; false when it does not run."""
    query = update(sandboxes).where(sandboxes.c.id == sandbox.value, sandboxes.c.status == State.RUNNING.value)
    values = {"intended_build_id": build.value, "last_updated": datetime.now(UTC)}
    return (await connection.execute(query.values(**values))).rowcount == 1


async def descend(
    connection: AsyncConnection,
    sandbox: SandboxId,
    *,
    build: BuildId | None = None,
    current: BuildId | None = None,
    host_ip: str | None = None,
    settled: bool = False,
) -> bool:
    """Say which builds a running sandbox has and descends from now; None leaves a column. False when it does not run.

    ``settled``: what was intended of it is done, or will not be. Its age stays, so that whoever compares it with an
    older look at it still finds it unchanged.
    """
    values: dict[str, object] = {}
    if build is not None:
        values["build_id"] = build.value
    if current is not None:
        values["current_build_id"] = current.value
    if host_ip is not None:
        values["host_ip"] = host_ip
    if settled:
        values["intended_build_id"] = None
    query = update(sandboxes).where(sandboxes.c.id == sandbox.value, sandboxes.c.status == State.RUNNING.value)
    return bool(values) and (await connection.execute(query.values(**values))).rowcount == 1


async def set_lifetime(connection: AsyncConnection, team: TeamId, sandbox: SandboxId, lifetime: Lifetime) -> bool:
    """Replace idle timeout and deadline of a running sandbox; false when it does not run."""
    query = update(sandboxes).where(
        sandboxes.c.team_id == team.value,
        sandboxes.c.id == sandbox.value,
        sandboxes.c.status == State.RUNNING.value,
    )
    values = _lifetime_columns(lifetime) | {"last_updated": datetime.now(UTC)}
    return (await connection.execute(query.values(**values))).rowcount == 1


async def active_at(connection: AsyncConnection, moments: Mapping[SandboxId, datetime]) -> None:
    """Record when sandboxes were last used."""
    for sandbox, when in moments.items():
        query = update(sandboxes).where(sandboxes.c.id == sandbox.value).values(last_active_at=when)
        await connection.execute(query)


def _bound(created_at: datetime, sandbox: UUID) -> tuple[ColumnElement[datetime], ColumnElement[UUID]]:
    return literal(created_at, sandboxes.c.created_at.type), literal(sandbox, sandboxes.c.id.type)


def _has_label(dialect: str, key: str, value: str) -> ColumnElement[bool]:
    if dialect == "postgresql":
        return type_coerce(sandboxes.c.metadata, JSONB).contains({key: value})
    entry = func.json_each(sandboxes.c.metadata).table_valued("key", "value")
    return exists(select(1).select_from(entry).where(entry.c.key == key, entry.c.value == value))


def _network_json(policy: NetworkPolicy) -> dict[str, object]:
    return {"egress": policy.egress.value, "allow_out": list(policy.allow_out), "deny_out": list(policy.deny_out)}


def _network(data: Mapping[str, Any]) -> NetworkPolicy:
    if not data:
        return NetworkPolicy()
    return NetworkPolicy(Egress(data["egress"]), tuple(data["allow_out"]), tuple(data["deny_out"]))


def _lifetime_columns(lifetime: Lifetime) -> dict[str, object]:
    ends_at = datetime.fromtimestamp(lifetime.ends_at_unix_s, UTC) if lifetime.ends_at_unix_s else None
    return {
        "timeout_sec": lifetime.idle_timeout_s,
        "idle_action": lifetime.idle_action.value,
        "ends_at": ends_at,
        "deadline_action": lifetime.deadline_action.value,
    }


def _lifetime(row: Row[Any]) -> Lifetime:
    return Lifetime(
        idle_timeout_s=row.timeout_sec,
        idle_action=TimeoutAction(row.idle_action),
        ends_at_unix_s=row.ends_at.timestamp() if row.ends_at else 0.0,
        deadline_action=TimeoutAction(row.deadline_action),
    )


def _record(row: Row[Any]) -> Sandbox:
    return Sandbox(
        id=SandboxId(row.id),
        team_id=TeamId(row.team_id),
        host_id=HostId(row.host_id),
        template=row.template,
        template_id=TemplateId(row.template_id),
        state=State(row.status),
        shape=Shape(row.vcpus, row.memory_mb),
        lifetime=_lifetime(row),
        network=_network(row.network),
        created_at=row.created_at,
        last_updated=row.last_updated,
        metadata=dict(row.metadata),
        envs=dict(row.envs),
        access_token=row.access_token,
        disk_size_mb=row.disk_size_mb,
        host_ip=row.host_ip,
        status_reason=row.status_reason,
        status_slug=row.status_slug,
        started_at=row.started_at,
        stopped_at=row.stopped_at,
        last_active_at=row.last_active_at,
        default_user=row.default_user,
        build_id=BuildId(row.build_id) if row.build_id else None,
        current_build_id=BuildId(row.current_build_id) if row.current_build_id else None,
        intended_build_id=BuildId(row.intended_build_id) if row.intended_build_id else None,
    )
