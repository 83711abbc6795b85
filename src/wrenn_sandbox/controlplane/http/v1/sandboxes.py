"""``/v1/sandboxes``: create, list, read, change, destroy, ping."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from wrenn_sandbox.controlplane.http.auth import Here, InPath, Who
from wrenn_sandbox.controlplane.http.v1.models import (
    ChangeSandbox,
    CreateSandbox,
    NetworkOut,
    PhaseOut,
    SandboxesOut,
    SandboxOut,
    Timeouts,
)
from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.create_sandbox import Phase, Wish
from wrenn_sandbox.controlplane.usecases.create_sandbox import create_sandbox as create
from wrenn_sandbox.controlplane.usecases.destroy_sandbox import destroy_sandbox as destroy
from wrenn_sandbox.controlplane.usecases.find_sandboxes import Page, Sandbox
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox as get
from wrenn_sandbox.controlplane.usecases.find_sandboxes import list_sandboxes as list_
from wrenn_sandbox.controlplane.usecases.set_lifetime import LifetimeChange, change_lifetime
from wrenn_sandbox.controlplane.usecases.set_lifetime import ping_sandbox as ping
from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.spec import Egress, Lifetime, NetworkPolicy

#: The path prefix under which clients of another generation ask, and get ids of their form.
CAPSULES = "/v1/capsules"
MAX_PAGE = 100
_LABEL = "metadata."


async def create_sandbox(request: Request, here: Here, who: Who, body: CreateSandbox) -> Response:
    """Make a sandbox and answer when it runs.

    The first sandbox of a new size waits until its template has been booted once. A template that is a snapshot fixes
    vCPUs and memory: what the body asks for is ignored, and the answer shows what there is. The disk is the template's.
    """
    network = NetworkPolicy(
        body.network.egress or Egress.OPEN, tuple(body.network.allow_out), tuple(body.network.deny_out)
    )
    wish = Wish(
        template=body.template,
        vcpus=body.vcpus,
        memory_mb=body.memory_mb,
        disk_size_mb=body.disk_size_mb,
        lifetime=lifetime_change(body).of(Lifetime()),
        network=network,
        metadata=body.metadata,
        envs=body.envs,
    )
    created = await create(here, who.team, wish)
    return answer(shown(request, created.sandbox, created.phases), 201)


async def list_sandboxes(
    request: Request,
    here: Here,
    who: Who,
    *,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    cursor: Annotated[str, Query(max_length=200)] = "",
    state: Annotated[list[str] | None, Query(description="Repeatable or comma-separated.")] = None,
) -> Response:
    """List sandboxes, newest first; those that are stopped or failed only when ``state`` asks for them.

    ``metadata.KEY=VALUE`` in the query, repeatable, keeps those with that label. When there is more, ``next_cursor``
    is what to send as ``cursor``. (``/v1/capsules`` answers with the bare list and the header ``X-Next-Cursor``.)
    """
    page = Page(
        limit=limit + 1,
        after=_position(cursor) if cursor else None,
        metadata={k.removeprefix(_LABEL): v for k, v in request.query_params.items() if k.startswith(_LABEL)},
        **({"states": _states(state)} if state else {}),
    )
    if any("\0" in text for pair in page.metadata.items() for text in pair):
        raise Invalid("metadata must not contain a NUL character.")
    rows = await list_(here, who.team, page)
    items = [shown(request, row) for row in rows[:limit]]
    following = _cursor(rows[limit - 1]) if len(rows) > limit else None
    if request.url.path.startswith(CAPSULES):
        body = b"[" + b",".join(_json(item) for item in items) + b"]"
        headers = {"x-next-cursor": following} if following else {}
        return Response(body, 200, headers, "application/json")
    return Response(_json(SandboxesOut(items=items, next_cursor=following)), media_type="application/json")


async def get_sandbox(request: Request, here: Here, who: Who, sandbox: InPath) -> Response:
    """Read one sandbox, whatever its state."""
    return answer(shown(request, await get(here, who.team, sandbox)))


async def change_sandbox(request: Request, here: Here, who: Who, sandbox: InPath, body: ChangeSandbox) -> Response:
    """Change when a running sandbox ends by itself."""
    row = await change_lifetime(here, who.team, sandbox, lifetime_change(body))
    return answer(shown(request, row))


async def destroy_sandbox(here: Here, who: Who, sandbox: InPath) -> Response:
    """Destroy a sandbox and everything in it. For one that is stopped already, this does nothing."""
    await destroy(here, who.team, sandbox)
    return Response(status_code=204)


async def ping_sandbox(here: Here, who: Who, sandbox: InPath) -> Response:
    """Reset the idle timeout."""
    await ping(here, who.team, sandbox)
    return Response(status_code=204)


def wire_id(request: Request, sandbox: SandboxId) -> str:
    """The sandbox's id in the form of the prefix that was asked."""
    return f"cl-{sandbox.base36}" if request.url.path.startswith(CAPSULES) else str(sandbox)


def lifetime_change(body: Timeouts) -> LifetimeChange:
    """The change that a body asks for. Raises Invalid for a deadline in the past."""
    return LifetimeChange(
        idle_timeout_s=body.timeout_sec,
        idle_action=body.idle_action,
        ends_at_unix_s=0.0 if "ends_at" in body.model_fields_set and body.ends_at is None else _deadline(body),
        deadline_action=body.deadline_action,
    )


def _deadline(body: Timeouts) -> float | None:
    if body.ends_in_sec is not None:
        return time.time() + body.ends_in_sec
    if body.ends_at is None:
        return None
    if body.ends_at.timestamp() <= time.time():
        raise Invalid("ends_at must lie in the future.")
    return body.ends_at.timestamp()


def _states(texts: Iterable[str]) -> frozenset[State]:
    names = {name.strip() for text in texts for name in text.split(",")}
    known = {state.value: state for state in State}
    if unknown := names - known.keys():
        raise Invalid(f"There is no state {min(unknown)[:40]!r}; the states are {', '.join(sorted(known))}.")
    return frozenset(known[name] for name in names)


def _cursor(row: Sandbox) -> str:
    return base64.urlsafe_b64encode(f"{row.created_at.isoformat()}|{row.id.value}".encode()).decode().rstrip("=")


def _position(cursor: str) -> tuple[datetime, UUID]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        moment, _, sandbox = text.partition("|")
        created_at = datetime.fromisoformat(moment)
        if created_at.tzinfo is None:
            raise ValueError("no zone")
        return created_at, UUID(sandbox)
    except (ValueError, binascii.Error) as error:
        raise Invalid("cursor must be what next_cursor gave.", slug="invalid_cursor") from error


def shown(request: Request, row: Sandbox, phases: tuple[Phase, ...] | None = None) -> SandboxOut:
    """A sandbox as the API shows it."""
    return SandboxOut(
        id=wire_id(request, row.id),
        status=row.state.value,
        status_reason=row.status_reason or None,
        status_slug=row.status_slug or None,
        stalled="host_disk_full" if _is_stalled(request, row) else None,
        template=row.template,
        template_id=str(row.template_id),
        build_id=str(row.build_id) if row.build_id else None,
        vcpus=row.shape.vcpus,
        memory_mb=row.shape.memory_mib,
        disk_size_mb=row.disk_size_mb or None,
        timeout_sec=row.lifetime.idle_timeout_s,
        idle_action=row.lifetime.idle_action,
        ends_at=_moment(row.lifetime.ends_at_unix_s),
        deadline_action=row.lifetime.deadline_action,
        host_id=str(row.host_id),
        host_ip=row.host_ip or None,
        created_at=row.created_at,
        started_at=row.started_at,
        stopped_at=row.stopped_at,
        last_active_at=row.last_active_at,
        last_updated=row.last_updated,
        metadata=row.metadata,
        network=NetworkOut(
            egress=row.network.egress, allow_out=list(row.network.allow_out), deny_out=list(row.network.deny_out)
        ),
        phases=None if phases is None else [PhaseOut(name=phase.name, ms=phase.ms) for phase in phases],
    )


def _is_stalled(request: Request, row: Sandbox) -> bool:
    platform: Platform = request.app.state.platform
    return row.state is State.RUNNING and platform.stalled.get(row.id) == "host_disk_full"


def _moment(unix_s: float) -> datetime | None:
    return datetime.fromtimestamp(unix_s, UTC) if unix_s else None


def _json(shown: SandboxOut | SandboxesOut) -> bytes:
    return shown.model_dump_json(exclude_none=True).encode()


def answer(shown: SandboxOut, status: int = 200) -> Response:
    """An answer with one sandbox."""
    return Response(_json(shown), status, media_type="application/json")
