"""What a host keeps and no row knows: it is left alone, and said in the log once in a while, with what to do.

Rows are never deleted, so it is the work of another database, or ours was lost and may yet be restored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from wrenn_sandbox.core.ids import EntityId

#: It is said again after this.
AGAIN_S = 600.0
_NAMED = 5
_TODO = (
    "Start the control plane with the database that made them (WRENN_DATABASE_URL), or restore it. To give them up: "
    "stop the host agent, remove their files from holds/ in its data directory, and start it again."
)

_log = structlog.get_logger()


class Unknown:
    """What was said of one kind of things."""

    def __init__(self) -> None:
        self._said_at_s = float("-inf")
        self._said: frozenset[EntityId] = frozenset()

    def tell(self, what: str, ids: Sequence[EntityId]) -> None:
        """Warn of ``ids``: at once of new ones, of the same again after a while."""
        now_s = time.monotonic()
        if not ids or (self._said.issuperset(ids) and now_s - self._said_at_s < AGAIN_S):
            return
        self._said_at_s, self._said = now_s, frozenset(ids)
        some = [str(each) for each in ids[:_NAMED]]
        _log.warning(f"the host keeps {what} that this database does not know", count=len(ids), some=some, todo=_TODO)
