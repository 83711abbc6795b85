"""``python -m wrenn_sandbox.hostagent``."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from wrenn_sandbox.core.errors import WrennError, first_cause
from wrenn_sandbox.hostagent.agent import run
from wrenn_sandbox.hostagent.settings import parse
from wrenn_sandbox.observe import logs


def main() -> int:
    """Run the agent; 0 after a signal, 1 when it could not be started or kept."""
    settings = parse(sys.argv[1:])
    logs.configure("hostagent", level=settings.log_level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except (BaseExceptionGroup, WrennError, ValueError, asyncio.CancelledError) as error:
        cause = first_cause(error)
        if isinstance(cause, WrennError | ValueError):
            slug = cause.slug if isinstance(cause, WrennError) else "invalid_option"
            sys.stderr.write(f"hostagent: {cause} [{slug}]\n")
            return 1
        if isinstance(cause, asyncio.CancelledError):
            return 1
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
