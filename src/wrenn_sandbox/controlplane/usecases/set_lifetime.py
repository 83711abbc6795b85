"""Change when a sandbox ends by itself, or say that it is in use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wrenn_sandbox.controlplane.messages import lifetime_message
from wrenn_sandbox.controlplane.platform import Platform, now
from wrenn_sandbox.controlplane.usecases.find_sandboxes import find_usable, get_sandbox
from wrenn_sandbox.core.errors import Conflict
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.core.lifecycle import Action, require
from wrenn_sandbox.core.spec import Lifetime, TimeoutAction
from wrenn_sandbox.db import sandboxes
from wrenn_sandbox.db.sandboxes import Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


@dataclass(frozen=True, slots=True)
class LifetimeChange:
    """New timeouts; None leaves one as it is, ``ends_at_unix_s`` 0 takes the deadline away."""

    idle_timeout_s: int | None = None
    idle_action: TimeoutAction | None = None
    ends_at_unix_s: float | None = None
    deadline_action: TimeoutAction | None = None

    def of(self, old: Lifetime) -> Lifetime:
        """The timeouts after the change."""
        return Lifetime(
            idle_timeout_s=old.idle_timeout_s if self.idle_timeout_s is None else self.idle_timeout_s,
            idle_action=self.idle_action or old.idle_action,
            ends_at_unix_s=old.ends_at_unix_s if self.ends_at_unix_s is None else self.ends_at_unix_s,
            deadline_action=self.deadline_action or old.deadline_action,
        )

    def anew(self, old: Lifetime) -> Lifetime:
        """The timeouts of a sandbox that begins to run now: a deadline that has passed meanwhile is none any more."""
        wanted = self.of(old)
        return replace(wanted, ends_at_unix_s=0.0) if wanted.ends_at_unix_s <= now().timestamp() else wanted


UNCHANGED = LifetimeChange()


async def change_lifetime(platform: Platform, team: TeamId, sandbox: SandboxId, change: LifetimeChange) -> Sandbox:
    """The sandbox with new timeouts.

    What was accepted holds: a host that does not answer now is told by the reconciler.
    """
    row = await get_sandbox(platform, team, sandbox)
    require(row.state, Action.USE)
    return await platform.settling.finish(sandbox, _tell(platform, row, change.of(row.lifetime)))


async def _tell(platform: Platform, row: Sandbox, wanted: Lifetime) -> Sandbox:
    async with platform.db.write() as connection:
        if not await sandboxes.set_lifetime(connection, row.team_id, row.id, wanted):
            raise Conflict("The sandbox has just stopped running.")
    platform.rows.drop(row.id)
    request = pb.SetLifetimeRequest(sandbox_id=str(row.id), lifetime=lifetime_message(wanted))
    await platform.agent.call("SetLifetime", request, pb.SetLifetimeResponse)
    return replace(row, lifetime=wanted)


async def ping_sandbox(platform: Platform, team: TeamId, sandbox: SandboxId) -> None:
    """Reset the idle timeout."""
    row = await find_usable(platform, team, sandbox)
    await platform.agent.call("PingSandbox", pb.PingSandboxRequest(sandbox_id=str(row.id)), pb.PingSandboxResponse)
    async with platform.db.write() as connection:
        await sandboxes.active_at(connection, {row.id: now()})
