"""Keeps the rows of builds and templates together with what a host has on its disk.

What to do is decided in ``core.reconcile``; here it is only carried out. Rows are read first, the host's list second.
"""

from __future__ import annotations

import time

import structlog

from wrenn_sandbox.controlplane.intents import template_of
from wrenn_sandbox.controlplane.messages import by_build, sandboxes_of, seen_build, settled
from wrenn_sandbox.controlplane.platform import Platform, now
from wrenn_sandbox.controlplane.unknown import Unknown
from wrenn_sandbox.controlplane.usecases.delete_snapshot import let_go
from wrenn_sandbox.core.ids import BuildId
from wrenn_sandbox.core.reconcile import (
    BuildMemory,
    BuildRow,
    DeleteTemplate,
    Forget,
    Record,
    SpareTemplate,
    Timing,
    decide_builds,
)
from wrenn_sandbox.db import builds, sandboxes, templates
from wrenn_sandbox.db.builds import Build, Kind, Status
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

_LIST_S = 15.0

_log = structlog.get_logger()


class Inventory:
    """The builds of one host."""

    def __init__(self, platform: Platform, timing: Timing | None = None) -> None:
        self._platform, self._timing = platform, timing or Timing()
        self._memory = BuildMemory()
        self._unknown = Unknown()

    async def tick(self) -> None:
        """Compare once and repair what differs. Raises what the agent says when it does not list its builds."""
        platform = self._platform
        async with platform.db.read() as connection:
            stored = await builds.of_host(connection, platform.host_id)
            needed = await builds.needed(connection, platform.host_id)
            known = await templates.of_host(connection, platform.host_id)
        rows = [self._row(build, needed) for build in stored]
        request = pb.ListBuildsRequest()
        answer = await platform.agent.call("ListBuilds", request, pb.ListBuildsResponse, timeout_s=_LIST_S)
        listed = by_build(answer.builds)
        async with platform.db.read() as connection:  # after the list: of what is on it, the rows were there before
            sources = await sandboxes.some_of_any_team(connection, sandboxes_of(listed.values()))
        ours = {source.id for source in sources}
        seen = [seen_build(build, message, ours) for build, message in listed.items()]
        plan = decide_builds(rows, known, seen, self._memory, now_s=time.monotonic(), timing=self._timing)
        self._memory = plan.memory
        self._unknown.tell("templates", [each.id for each in plan.decisions if isinstance(each, SpareTemplate)])
        by_id = {build.id: build for build in stored}
        for decision in plan.decisions:
            match decision:
                case Record(id=build, seen=found, unnamed=unnamed):
                    await self._record(by_id[build], listed[found], unnamed=unnamed)
                case Forget(id=build):
                    _log.info("a build is no more", build=str(build), intent=by_id[build].status is Status.CREATING)
                    async with platform.db.write() as connection:
                        await builds.forget(connection, [build])
                case DeleteTemplate(id=template) if not platform.settling.is_busy(template):
                    _log.info("deleting a template that is nobody's", template=str(template))
                    platform.settling.begin(template, let_go(platform, template))

    def _row(self, build: Build, needed: frozenset[BuildId]) -> BuildRow:
        busy = self._platform.settling.is_busy(build.sandbox_id)
        making = build.status is Status.CREATING
        age_s = (now() - build.created_at).total_seconds()
        template = build.template_id if making else None
        return BuildRow(build.id, making, age_s, template, build.id in needed, busy, build.size_bytes)

    async def _record(self, row: Build, message: pb.Build, *, unnamed: bool) -> None:
        made, old = settled(row, message), None
        async with self._platform.db.write() as connection:
            intended = await builds.intended(connection, row.id)
            if intended is None and row.status is Status.CREATING:
                return  # somebody else was faster
            if made.id != row.id:
                await builds.forget(connection, [row.id])
            await builds.ready(connection, made)
            source = await sandboxes.get_of_any_team(connection, row.sandbox_id)
            if intended is not None and source is not None and row.kind is not Kind.PAUSE:
                if source.current_build_id == row.parent_id:
                    await sandboxes.descend(connection, source.id, current=made.id)
                if row.kind is Kind.SNAPSHOT and not unnamed:
                    old = await templates.remove(connection, row.team_id, row.name)
                    await templates.add(connection, template_of(source, row, made))
        if intended is not None:
            self._platform.rows.drop(row.sandbox_id)
            _log.info("a build was made after all", build=str(made.id), kind=row.kind.value, name=row.name)
        if old is not None:
            self._platform.settling.begin(old.id, let_go(self._platform, old.id))
