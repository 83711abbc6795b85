"""Look templates up, and the moments that a sandbox can be put back to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.find_sandboxes import get_sandbox
from wrenn_sandbox.core.ids import BuildId, SandboxId, TeamId
from wrenn_sandbox.db import builds, templates
from wrenn_sandbox.db.builds import Build, Kind
from wrenn_sandbox.db.sandboxes import Sandbox
from wrenn_sandbox.db.templates import Template as Template  # for the edge, which must not know the database
from wrenn_sandbox.db.templates import Type as Type


@dataclass(frozen=True, slots=True)
class Moment:
    """One build of a sandbox's history. ``parent`` is the one before it, if that is still there."""

    id: BuildId
    parent: BuildId | None
    sandbox: SandboxId
    kind: Kind
    names: tuple[str, ...]
    size_bytes: int
    created_at_unix_s: float
    current: bool


async def list_snapshots(platform: Platform, team: TeamId, types: Collection[Type] = tuple(Type)) -> list[Template]:
    """The team's templates and the platform's, newest first."""
    async with platform.db.read() as connection:
        return await templates.visible(connection, team, types)


async def history(platform: Platform, team: TeamId, sandbox: SandboxId) -> list[Moment]:
    """A sandbox's tree, oldest first: its own durable builds, and those of others that it or they descend from."""
    return await history_of(platform, await get_sandbox(platform, team, sandbox))


async def history_of(platform: Platform, row: Sandbox) -> list[Moment]:
    """The tree of a sandbox whose row is at hand."""
    async with platform.db.read() as connection:
        found = {build.id: build for build in await builds.of_sandbox(connection, row.team_id, row.id)}
        wanted = _above(found.values()) | ({row.current_build_id} if row.current_build_id else set())
        while wanted := wanted - found.keys():
            above = await builds.some(connection, row.team_id, wanted)
            found |= {build.id: build for build in above}
            wanted = _above(above)
        named = await templates.of_builds(connection, row.team_id, found.keys())
    ordered = sorted(found.values(), key=lambda build: (build.created_at, build.id.value))
    return [
        Moment(
            id=build.id,
            parent=build.parent_id if build.parent_id in found else None,
            sandbox=build.sandbox_id,
            kind=build.kind,
            names=tuple(template.name for template in named if template.build_id == build.id),
            size_bytes=build.size_bytes,
            created_at_unix_s=build.created_at.timestamp(),
            current=build.id == row.current_build_id,
        )
        for build in ordered
    ]


def _above(found: Collection[Build]) -> set[BuildId]:
    return {build.parent_id for build in found if build.parent_id is not None}
