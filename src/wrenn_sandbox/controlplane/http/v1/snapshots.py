"""``/v1/snapshots``: templates, those of the platform and those that are moments of a team's sandboxes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from wrenn_sandbox.controlplane.http.auth import Here, Who
from wrenn_sandbox.controlplane.http.v1.models import SnapshotOut, TakeSnapshot
from wrenn_sandbox.controlplane.usecases.delete_snapshot import delete_snapshot as delete
from wrenn_sandbox.controlplane.usecases.find_snapshots import Template, Type
from wrenn_sandbox.controlplane.usecases.find_snapshots import list_snapshots as list_
from wrenn_sandbox.controlplane.usecases.take_snapshot import SnapshotWish
from wrenn_sandbox.controlplane.usecases.take_snapshot import take_snapshot as take
from wrenn_sandbox.core.ids import SandboxId


async def create_snapshot(
    here: Here,
    who: Who,
    body: TakeSnapshot,
    *,
    overwrite: Annotated[bool, Query(description="Replace a snapshot of this name.")] = False,
) -> Response:
    """Keep a moment of a running or paused sandbox under a name, from which new sandboxes are made.

    The sandbox keeps running; `leave_paused` leaves it paused, as the original of this API always did. With
    `overwrite`, the old snapshot stays until the new one is durable.
    """
    wish = SnapshotWish(body.name or "", overwrite, body.leave_paused)
    template = await take(here, who.team, SandboxId.parse(body.sandbox_id), wish)
    return Response(_shown(template).model_dump_json(exclude_none=True), 201, media_type="application/json")


async def list_snapshots(here: Here, who: Who, *, type: Type | None = None) -> Response:
    """List the templates a sandbox can be made from, the team's own and the platform's, newest first."""
    templates = await list_(here, who.team, tuple(Type) if type is None else (type,))
    items = [_shown(template).model_dump_json(exclude_none=True) for template in templates]
    return Response(f"[{','.join(items)}]", media_type="application/json")


async def delete_snapshot(here: Here, who: Who, name: str) -> Response:
    """Delete a snapshot. Sandboxes that were made from it, and the one it was made of, go on."""
    await delete(here, who.team, name)
    return Response(status_code=204)


def _shown(template: Template) -> SnapshotOut:
    fixed = template.type is Type.SNAPSHOT
    return SnapshotOut(
        id=str(template.id),
        name=template.name,
        type=template.type.value,
        vcpus=template.shape.vcpus if fixed else None,
        memory_mb=template.shape.memory_mib if fixed else None,
        size_bytes=template.size_bytes,
        created_at=template.created_at,
        platform=template.platform,
        build_id=str(template.build_id) if template.build_id else None,
    )
