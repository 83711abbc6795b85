"""Snapshot: a durable build of this moment, while the sandbox goes on above a new overlay.

::

    overlay made ▸ machine stopped ▸ changed pages ▸ state, overlay on top ▸ machine goes on ▸ durable and held
                   └──────────────── uses merely wait: some 20 ms ────────┘

A failure before the overlay is on top leaves everything as it was. After that the machine has one overlay more than
builds; the layer below is then kept beside it, and the next snapshot or pause makes a build of it first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import structlog

from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.hostagent import moment
from wrenn_sandbox.hostagent.builds import Kept
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.moment import Sitting
from wrenn_sandbox.hostagent.parts import Parts
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.threads import in_thread

log = structlog.get_logger()


async def snapshot(request: Request, parts: Parts, host: Host, build_id: UUID, holders: Sequence[str]) -> Kept:
    """Take the moment for ``holders``. A failure leaves the sandbox running and no build."""
    host.capacity.require_disk()
    try:
        async with moment.sitting(request, parts, host, build_id) as being:
            await _take(request, parts, host, being)
            await in_thread(being.draft.take_disk, parts.ground.pending[0])
            build = await host.builds.keep(being.draft, being.manifest, holders)
            moment.stand_on(request, parts, build)
            return being.clock.kept(build)
    except Exception:
        await host.builds.collect()
        raise


async def _take(request: Request, parts: Parts, host: Host, being: Sitting) -> None:
    overlay = await in_thread(moment.new_overlay, parts, host)
    being.clock.stopped = time.perf_counter()
    try:
        await parts.machine.pause()
        await moment.take_pages(parts, being)
        await parts.machine.snapshot(being.draft.state, overlay)
        moment.cover(parts, overlay)
    except Exception:
        await _undo(parts, overlay)
        raise
    finally:
        await moment.let_run(request, parts)
    being.clock.going = time.perf_counter()


async def _undo(parts: Parts, overlay: Path) -> None:
    """Remove the overlay unless the machine writes to it; while that cannot be known it stays."""
    with suppress(WrennError):
        if await parts.machine.writes_to(overlay):
            moment.cover(parts, overlay)
        else:
            overlay.unlink(missing_ok=True)
