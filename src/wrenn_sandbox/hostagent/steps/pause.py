"""Pause: the moment of a sandbox becomes a durable build of its own, after which nothing of the sandbox is needed.

::

    guest quiet (3 s, best effort) ▸ machine stopped ▸ state ▸ changed pages ▸ disk layer ▸ durable and held
    └──────────── a failure: the machine goes on, the guest's ports too; no build ────────────┘

The caller releases everything afterwards. The order is that of two decisions: the record of the running machine goes
only when the hold is on disk, so whoever comes after a crash in between has the one or the other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import structlog

from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.hostagent import journal, moment
from wrenn_sandbox.hostagent.builds import Kept
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.moment import Sitting
from wrenn_sandbox.hostagent.parts import Parts
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.threads import in_thread

log = structlog.get_logger()

QUIET_LIMIT_S = 3.0


async def pause(
    request: Request,
    parts: Parts,
    host: Host,
    build_id: UUID,
    *,
    done: Callable[[Kept], None],
    holders: Sequence[str] = (),
) -> None:
    """Take the moment; ``done`` is told in the instant in which it is durable. A failure leaves the sandbox running.

    The sandbox holds the build, and so do ``holders``.
    """
    over = False
    try:
        async with moment.sitting(request, parts, host, build_id) as being:
            await _take(request, parts, being)
            build = await host.builds.keep(being.draft, being.manifest, (str(request.id), *holders))
            over = True
            done(being.clock.kept(build))
    except Exception:
        if not over:
            # What was published and not held may share its disk with the machine: it goes before that writes again.
            await host.builds.collect()
            await moment.go_on(request, parts)
            raise
        log.exception("after a pause", sandbox=str(request.id))
    with contextlib.suppress(OSError):  # its absence is only the shorter way for the next agent
        journal.erase(parts.directory)


async def _take(request: Request, parts: Parts, being: Sitting) -> None:
    await _quiet(request, parts)
    being.clock.stopped = time.perf_counter()
    await parts.machine.pause()
    await parts.machine.snapshot(being.draft.state)
    await moment.take_pages(parts, being)
    await in_thread(being.draft.take_disk, parts.ground.disk)


async def _quiet(request: Request, parts: Parts) -> None:
    """Ask the guest to be quiet. It need not be: one that hangs, or knows no such thing, is paused as it is."""
    try:
        await parts.guest.prepare_snapshot(limit_s=QUIET_LIMIT_S)
    except WrennError as error:
        log.warning("guest not quiet", sandbox=str(request.id), slug=error.slug, reason=error.message)
