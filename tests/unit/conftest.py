"""Unit tests log to nowhere in plain text: a coloured traceback takes longer to draw than most tests to run.

Garbage is collected as ever, but what the imports left, which lives as long as the process, is never looked at again:
with the control plane's libraries it is most of what there is.
"""

from __future__ import annotations

import gc

import structlog

structlog.configure(
    processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.ReturnLoggerFactory()
)
gc.disable()  # the imports to come make little garbage


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    gc.set_threshold(1000, 10, 100)
