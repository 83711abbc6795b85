"""The world of the network tests, and what they may not leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .world import Snapshot, World, world


@pytest.fixture
def here() -> Iterator[World]:
    """A host, an internet and a LAN; after the test the host is as it was before."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with world() as made:
        before = Snapshot.take(made.tag)
        yield made
        assert Snapshot.take(made.tag) == before
