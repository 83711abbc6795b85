"""Delete a template: its row first, then the host lets its build go. What fails there is done by the reconciler."""

from __future__ import annotations

import structlog

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.core.errors import Denied, NotFound, WrennError
from wrenn_sandbox.core.ids import TeamId, TemplateId
from wrenn_sandbox.db import templates
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

LET_GO_S = 30.0

_log = structlog.get_logger()


async def delete_snapshot(platform: Platform, team: TeamId, name: str) -> None:
    """Delete a team's template. Sandboxes that were made from it go on.

    Raises NotFound (``snapshot_not_found``), or Denied for one of the platform's.
    """
    async with platform.db.write() as connection:
        gone = await templates.remove(connection, team, name)
        found = gone or await templates.by_name(connection, team, name)
    if found is None:
        raise NotFound(f"There is no snapshot {name!r}.", slug="snapshot_not_found")
    if gone is None:
        raise Denied(f"{name!r} is a template of the platform, which no team can delete.")
    await platform.settling.finish(gone.id, let_go(platform, gone.id))


async def let_go(platform: Platform, template: TemplateId) -> None:
    """Tell the host that a template is nobody's any more. A host that does not answer is told by the reconciler."""
    request = pb.DeleteSnapshotRequest(template_id=str(template.value))
    try:
        await platform.agent.call("DeleteSnapshot", request, pb.DeleteSnapshotResponse, timeout_s=LET_GO_S)
    except WrennError as error:
        _log.warning("the host still has a deleted template", template=str(template), reason=error.message)
