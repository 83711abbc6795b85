"""Unit tests log to nowhere in plain text: a coloured traceback takes longer to draw than most tests to run."""

from __future__ import annotations

import structlog

structlog.configure(
    processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.ReturnLoggerFactory()
)
