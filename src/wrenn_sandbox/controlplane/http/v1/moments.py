"""``/v1/sandboxes/{id}/pause|resume|fork|rollback|snapshots``: moments of a sandbox, and going on from them."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from wrenn_sandbox.controlplane.http.auth import Here, InPath, Who
from wrenn_sandbox.controlplane.http.v1.models import (
    ForkOut,
    ForkSandbox,
    HistoryOut,
    MomentOut,
    ResumeSandbox,
    RollBackSandbox,
)
from wrenn_sandbox.controlplane.http.v1.sandboxes import answer, lifetime_change, shown, wire_id
from wrenn_sandbox.controlplane.usecases.find_snapshots import Moment, history
from wrenn_sandbox.controlplane.usecases.fork_sandbox import ForkWish
from wrenn_sandbox.controlplane.usecases.fork_sandbox import fork_sandbox as fork
from wrenn_sandbox.controlplane.usecases.pause_sandbox import pause_sandbox as pause
from wrenn_sandbox.controlplane.usecases.resume_sandbox import resume_sandbox as resume
from wrenn_sandbox.controlplane.usecases.rollback_sandbox import rollback_sandbox as roll_back
from wrenn_sandbox.controlplane.usecases.set_lifetime import UNCHANGED


async def pause_sandbox(request: Request, here: Here, who: Who, sandbox: InPath) -> Response:
    """Pause a sandbox: memory, processes and files are kept on disk, everything else is freed.

    Answers when the moment is durable. A pause that fails leaves the sandbox running.
    """
    return answer(shown(request, await pause(here, who.team, sandbox)))


async def resume_sandbox(
    request: Request, here: Here, who: Who, sandbox: InPath, body: ResumeSandbox | None = None
) -> Response:
    """Resume a sandbox where it was paused, with the timeouts it had or new ones.

    A deadline that has passed meanwhile counts no more. One that failed and has a `build_id` goes back to that moment.
    """
    change = UNCHANGED if body is None else lifetime_change(body)
    return answer(shown(request, await resume(here, who.team, sandbox, change)))


async def fork_sandbox(request: Request, here: Here, who: Who, sandbox: InPath, body: ForkSandbox) -> Response:
    """Make children that begin where a running or paused sandbox is now, memory and disk; all of them or none.

    Each has its own id and token, and its source's metadata. The source goes on; it stands still for a moment only.
    """
    children = await fork(here, who.team, sandbox, ForkWish(body.count, lifetime_change(body)))
    items = ForkOut(items=[shown(request, child) for child in children])
    return Response(items.model_dump_json(exclude_none=True), 201, media_type="application/json")


async def rollback_sandbox(request: Request, here: Here, who: Who, sandbox: InPath, body: RollBackSandbox) -> Response:
    """Put a sandbox back to a moment of its history, in place; it runs afterwards and keeps its id.

    What it did since is lost, unless a snapshot or a fork has it. When it fails, the sandbox is as it was.
    """
    return answer(shown(request, await roll_back(here, who.team, sandbox, body.snapshot)))


async def get_history(request: Request, here: Here, who: Who, sandbox: InPath) -> Response:
    """List the moments that a sandbox can be put back to, oldest first: a tree by `parent_id`.

    Named snapshots stay until they are deleted, and the newest moment stays; others as long as one of these needs them.
    """
    items = [_shown(request, moment) for moment in await history(here, who.team, sandbox)]
    return Response(HistoryOut(items=items).model_dump_json(exclude_none=True), media_type="application/json")


def _shown(request: Request, moment: Moment) -> MomentOut:
    return MomentOut(
        id=str(moment.id),
        parent_id=str(moment.parent) if moment.parent else None,
        sandbox_id=wire_id(request, moment.sandbox),
        kind=moment.kind.value,
        name=moment.names[-1] if moment.names else None,
        created_at=datetime.fromtimestamp(moment.created_at_unix_s, UTC),
        size_bytes=moment.size_bytes,
        current=moment.current,
    )
