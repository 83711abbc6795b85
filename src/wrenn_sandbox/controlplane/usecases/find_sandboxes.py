"""Look sandboxes up: one, many, or the one a request wants to use."""

from __future__ import annotations

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import Action, State, require
from wrenn_sandbox.db import sandboxes
from wrenn_sandbox.db.sandboxes import Page as Page  # the edge speaks of both and must not know the database
from wrenn_sandbox.db.sandboxes import Sandbox as Sandbox


async def get_sandbox(platform: Platform, team: TeamId, sandbox: SandboxId) -> Sandbox:
    """A sandbox of the team, whatever its state. Raises NotFound, also for one of another team."""
    async with platform.db.read() as connection:
        row = await sandboxes.get(connection, team, sandbox)
    if row is None:
        raise _unknown(sandbox)
    return row


async def list_sandboxes(platform: Platform, team: TeamId, page: Page) -> list[Sandbox]:
    """One page of the team's sandboxes, newest first."""
    async with platform.db.read() as connection:
        return await sandboxes.page(connection, team, page)


async def find_usable(platform: Platform, team: TeamId, sandbox: SandboxId) -> Sandbox:
    """A sandbox of the team that runs. Raises NotFound, Conflict (``invalid_state``) or Unavailable."""
    row = await find_anyones(platform, sandbox)
    if row is None or row.team_id != team:
        raise _unknown(sandbox)
    if row.state is State.MISSING:
        raise Unavailable("The host of this sandbox does not answer; it may come back.", retry_after_s=10)
    require(row.state, Action.USE)
    return row


async def find_anyones(platform: Platform, sandbox: SandboxId) -> Sandbox | None:
    """A sandbox of any team, perhaps as it was a second ago. The caller must check whose it is."""
    if (cached := platform.rows.get(sandbox)) is not None:
        return cached
    ticket = platform.rows.ticket()
    async with platform.db.read() as connection:
        row = await sandboxes.get_of_any_team(connection, sandbox)
    if row is not None:
        platform.rows.put(sandbox, row, ticket)
    return row


def _unknown(sandbox: SandboxId) -> NotFound:
    return NotFound(f"There is no sandbox {sandbox}.")
