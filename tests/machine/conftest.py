"""Fixtures for tests on real QEMU: one platform for the session, and the proof after each test that nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.leaks import Footprint
from tests.running import Platform, platform
from tests.traces import Traces


@pytest.fixture(scope="session")
def running_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """`wrenn up` on real QEMU. When it has stopped, the machine is as it was."""
    data_dir = tmp_path_factory.mktemp("platform")
    data_dir.chmod(0o711)
    with clean_platform(data_dir, "wtm") as running:
        yield running


@contextmanager
def clean_platform(data_dir: Path, tag: str, *options: str) -> Iterator[Platform]:
    """A platform on real QEMU that leaves nothing behind when it has stopped."""
    before = Footprint.take().of(tag)
    with platform(data_dir, driver="qemu", tag=tag, options=options) as running:
        yield running
    assert Footprint.take().of(tag).left_behind(before) == {}
    assert [p.name for p in (data_dir / "run").iterdir() if p.is_dir()] == []


@pytest.fixture
def wrenn(running_platform: Platform) -> Iterator[Platform]:
    """The platform; whatever a test made is destroyed, and then no trace of it may be left."""
    with nothing_left(running_platform):
        yield running_platform


@contextmanager
def nothing_left(running: Platform) -> Iterator[None]:
    """Destroy what sandboxes there are at the end, after which the platform holds what it held before."""
    before = Traces.take(running)
    yield
    for item in running.client.get("/v1/sandboxes?limit=100").json()["items"]:
        running.kill(item["id"])
    _settled(lambda: Traces.take(running).left_behind(before))


@pytest.fixture
def sandbox(wrenn: Platform) -> str:
    """The id of a running sandbox of the default shape."""
    return str(wrenn.create()["id"])


def _settled(left: Callable[[], dict[str, object]], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while found := left():
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@pytest.fixture
def data_dir(running_platform: Platform) -> Path:
    """The platform's data directory."""
    return running_platform.data_dir
