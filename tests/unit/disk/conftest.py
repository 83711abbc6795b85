"""Every test of builds has a store of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.disk.world import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The platform tests of the store sync for real; here a disk would only take its time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return World(tmp_path)
