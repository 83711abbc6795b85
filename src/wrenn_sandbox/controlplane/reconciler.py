"""Keeps rows and reality together: every two seconds the host agent is asked what runs, and what differs is repaired.

What to do is decided in ``core.reconcile``; here it is only carried out, each change on condition that the row is still
as it was when it was read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from wrenn_sandbox.controlplane.intents import intent
from wrenn_sandbox.controlplane.inventory import Inventory
from wrenn_sandbox.controlplane.messages import lifetime_message, seen
from wrenn_sandbox.controlplane.platform import Platform, now
from wrenn_sandbox.controlplane.unknown import Unknown
from wrenn_sandbox.controlplane.usecases.issue_keys import write_uses
from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.reconcile import (
    LIVE,
    UNTOUCHED,
    Decision,
    Destroy,
    Memory,
    Move,
    Note,
    NoteMoment,
    Row,
    SendLifetime,
    Spare,
    Timing,
    decide,
    decide_unreachable,
    may_stay,
)
from wrenn_sandbox.core.spec import Lifetime
from wrenn_sandbox.db import builds, hosts, sandboxes
from wrenn_sandbox.db.builds import Kind
from wrenn_sandbox.db.hosts import HostFacts
from wrenn_sandbox.db.sandboxes import Change, Sandbox
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

INTERVAL_S = 2.0
_LIST_S = 5.0
_REPAIR_S = 30.0
#: Builds are compared, and facts of the host, uses of keys and last activity written this often at most.
_BOOKKEEPING_S = 10.0
_ACTIVITY_STEP = timedelta(seconds=_BOOKKEEPING_S)

_log = structlog.get_logger()


class Reconciler:
    """One loop for one host."""

    def __init__(self, platform: Platform, timing: Timing | None = None) -> None:
        self._platform, self._timing = platform, timing or Timing()
        self._memory = Memory()
        self._inventory = Inventory(platform, self._timing)
        self._unknown = Unknown()
        self._kept_books_at = float("-inf")

    async def run(self) -> None:
        """Tick for ever; a tick that fails is logged and the next one tries again."""
        while True:
            try:
                await self.tick()
                await self._keep_books()
            except WrennError as error:
                _log.warning("could not reconcile", slug=error.slug, reason=error.message)
            except Exception as error:  # nothing may end this loop: without it nothing is repaired
                _log.error("could not reconcile", exc_info=error)
            await asyncio.sleep(INTERVAL_S)

    async def tick(self) -> None:
        """Compare once and repair what differs."""
        platform = self._platform
        async with platform.db.read() as connection:
            stored = await sandboxes.of_host(connection, platform.host_id, LIVE | UNTOUCHED)
            stored += await sandboxes.resumable_failures(connection, platform.host_id)
        rows = {row.id: row for row in stored}
        compared = [self._row(row) for row in stored]
        try:
            request = pb.ListSandboxesRequest()
            answer = await platform.agent.call("ListSandboxes", request, pb.ListSandboxesResponse, timeout_s=_LIST_S)
        except WrennError as error:
            platform.stalled = {}
            silent_s = time.monotonic() - platform.contact.last_answer_s
            _log.warning("the host agent does not answer", silent_s=round(silent_s), reason=error.message)
            await self._carry_out(decide_unreachable(compared, silent_s, self._timing), rows)
            if silent_s >= self._timing.missing_after_s:
                async with platform.db.write() as connection:
                    await hosts.lost(connection, platform.host_id, now())
            return
        platform.contact.last_answer_s, platform.contact.answered = time.monotonic(), True
        entries = [entry for info in answer.sandboxes if (entry := seen(info)) is not None]
        platform.stalled = {entry.id: entry.stalled for entry in entries if entry.stalled}
        compared += await self._ended({entry.id for entry in entries} - rows.keys())
        plan = decide(compared, entries, self._memory, time.monotonic(), self._timing)
        self._memory = plan.memory
        self._unknown.tell("sandboxes", [decision.id for decision in plan.decisions if isinstance(decision, Spare)])
        await self._carry_out(plan.decisions, rows)
        await self._note_activity(answer.sandboxes, rows)

    async def _ended(self, listed: Collection[SandboxId]) -> list[Row]:
        """The rows of those that the agent lists without a right to it. One that came to be since is none of them."""
        if not listed:
            return []
        async with self._platform.db.read() as connection:
            found = await sandboxes.some_of_any_team(connection, listed)
        return [self._row(row) for row in found if not may_stay(row.state, row.build_id)]

    def _row(self, row: Sandbox) -> Row:
        age_s = (now() - row.last_updated).total_seconds()
        busy = self._platform.settling.is_busy(row.id)
        return Row(
            row.id,
            row.state,
            age_s,
            row.lifetime,
            reason=row.status_reason,
            busy=busy,
            build=row.build_id,
            current=row.current_build_id,
            intended=row.intended_build_id,
            host_ip=row.host_ip,
        )

    async def _carry_out(self, decisions: Iterable[Decision], rows: dict[SandboxId, Sandbox]) -> None:
        for decision in decisions:
            match decision:
                case Move():
                    await self._move(decision, rows[decision.id])
                case Note(id=sandbox, state=state, reason=reason):
                    async with self._platform.db.write() as connection:
                        await sandboxes.note(connection, sandbox, state, reason)
                case NoteMoment() if not self._platform.settling.is_busy(decision.id):
                    await self._note_moment(decision)
                case Destroy(id=sandbox) if not self._platform.settling.is_busy(sandbox):
                    self._platform.settling.begin(sandbox, self._destroy(sandbox))
                case SendLifetime(id=sandbox, lifetime=lifetime):
                    self._platform.settling.begin(sandbox, self._send_lifetime(sandbox, lifetime))

    async def _move(self, move: Move, row: Sandbox) -> None:
        async with self._platform.db.write() as connection:
            moved = await sandboxes.move(
                connection, move.id, {move.expected}, move.state, _change(move, row), unchanged_since=row.last_updated
            )
            build = move.seen.build if move.seen is not None else None
            if moved and move.state is State.PAUSED and build is not None:
                intended = await builds.intended(connection, build)
                if intended is None or intended.template_id is None:  # else a template shall come of it, too
                    # The host's own pause has no intent of ours. Its size and parent follow with the list of builds.
                    await builds.ready(connection, replace(intent(row, Kind.PAUSE), id=build))
        self._platform.rows.drop(move.id)
        if moved:
            _log.info("reconciled", sandbox=str(move.id), was=move.expected.value, now=move.state.value, why=move.slug)

    async def _note_moment(self, note: NoteMoment) -> None:
        async with self._platform.db.write() as connection:
            await sandboxes.descend(
                connection,
                note.id,
                build=note.build,
                current=note.current,
                host_ip=note.host_ip or None,
                settled=note.settles,
            )
        self._platform.rows.drop(note.id)
        if note.settles:
            _log.info("an unanswered roll back is settled", sandbox=str(note.id), new_current=str(note.current))

    async def _destroy(self, sandbox: SandboxId) -> None:
        """Remove what has no right to be on the host, unless its row says otherwise by now."""
        async with self._platform.db.read() as connection:
            row = await sandboxes.get_of_any_team(connection, sandbox)
        state = row.state if row else None
        if state is not State.STOPPING and row is not None and may_stay(row.state, row.build_id):
            return
        _log.info("destroying an orphan", sandbox=str(sandbox), row=state.value if state else None)
        request = pb.DestroySandboxRequest(sandbox_id=str(sandbox))
        await self._platform.agent.call("DestroySandbox", request, pb.DestroySandboxResponse, timeout_s=_REPAIR_S)
        if state is State.STOPPING:
            async with self._platform.db.write() as connection:
                await sandboxes.move(connection, sandbox, {State.STOPPING}, State.STOPPED)

    async def _send_lifetime(self, sandbox: SandboxId, lifetime: Lifetime) -> None:
        request = pb.SetLifetimeRequest(sandbox_id=str(sandbox), lifetime=lifetime_message(lifetime))
        await self._platform.agent.call("SetLifetime", request, pb.SetLifetimeResponse)

    async def _note_activity(self, infos: Iterable[pb.SandboxInfo], rows: dict[SandboxId, Sandbox]) -> None:
        by_id = {str(sandbox): row for sandbox, row in rows.items()}
        moments = {}
        for info in infos:
            row = by_id.get(info.sandbox_id)
            if row is None or row.state is not State.RUNNING or not info.last_active_at_unix:
                continue
            active = datetime.fromtimestamp(info.last_active_at_unix, UTC)
            if row.last_active_at is None or active - row.last_active_at >= _ACTIVITY_STEP:
                moments[row.id] = active
        if moments:
            async with self._platform.db.write() as connection:
                await sandboxes.active_at(connection, moments)

    async def _keep_books(self) -> None:
        if time.monotonic() - self._kept_books_at < _BOOKKEEPING_S:
            return
        self._kept_books_at = time.monotonic()
        await self._inventory.tick()
        await write_uses(self._platform)
        agent = self._platform.agent
        host = await agent.call("GetHost", pb.GetHostRequest(), pb.GetHostResponse, timeout_s=_LIST_S)
        facts = HostFacts(host.arch, host.cpu_cores, host.memory_mb, host.disk_mb >> 10)
        async with self._platform.db.write() as connection:
            await hosts.heard_from(connection, self._platform.host_id, facts, now())


def _change(move: Move, row: Sandbox) -> Change:
    build = move.seen.build if move.seen is not None else None
    if move.state is State.PAUSED:
        return Change(move.reason, move.slug, host_ip="", build_id=build, current_build_id=build)
    if move.state is not State.RUNNING or move.seen is None:
        return Change(move.reason, move.slug, build_id=build)
    began = move.expected not in (State.MISSING, State.PAUSING)
    restored = None
    if move.expected is State.RESUMING:
        restored = move.seen.current or build or row.build_id
    elif move.expected is State.PENDING:
        restored = move.seen.current
    return Change(
        host_ip=move.seen.host_ip,
        shape=move.seen.shape,
        started=began,
        build_id=build,
        current_build_id=restored,
    )
