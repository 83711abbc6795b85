"""Unit tests log to nowhere in plain text: a coloured traceback takes longer to draw than most tests to run.

Garbage is collected as ever, but what the imports left, which lives as long as the process, is never looked at again:
with the control plane's libraries it is most of what there is. Files that go with their test are kept in memory.
"""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import pytest
import structlog

MEMORY = Path("/dev/shm")
#: A container's may be too small.
ENOUGH_BYTES = 1 << 30

structlog.configure(
    processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.ReturnLoggerFactory()
)
gc.disable()  # the imports to come make little garbage


def pytest_configure(config: pytest.Config) -> None:
    gone_at_once = config.getini("tmp_path_retention_policy") != "all"
    if gone_at_once and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    gc.set_threshold(1000, 10, 100)
