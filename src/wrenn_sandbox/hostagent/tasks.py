"""A TaskGroup for tasks that are one operation: its error comes out as it is, not wrapped in a group.

An asynchronous generator that is closed early sees GeneratorExit, which a bare TaskGroup would wrap too, and the
closing would fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wrenn_sandbox.core.errors import first_cause


@asynccontextmanager
async def side_tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks beside the body; they are cancelled when the body fails or is left early, waited for when it ends."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failed:
        raise first_cause(failed) from None
