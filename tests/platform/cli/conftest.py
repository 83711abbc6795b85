"""A platform over the fake VMM, and the command line as its users start it: a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.leaks import Footprint
from tests.running import Platform, platform
from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.image.catalog import Catalog

# A shell starts its background jobs with SIGINT ignored, and ignored it stays across exec: we send it to see it heeded.
signal.signal(signal.SIGINT, signal.default_int_handler)

WRENN = (sys.executable, "-m", "wrenn_sandbox.cli")


def until(condition: Callable[[], object], limit_s: float = 60) -> None:
    """Wait for it."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wrenn(
    *arguments: object, env: dict[str, str] | None = None, **options: object
) -> subprocess.CompletedProcess[bytes]:
    """One command to its end. Nothing of our own environment tells it where a platform is."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("WRENN_")}
    words = [*WRENN, *map(str, arguments)]
    return subprocess.run(words, env=known | (env or {}), capture_output=True, timeout=120, check=False, **options)


def refusal(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that a failed command says."""
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (1, b""), (done, said)
    assert said.startswith("wrenn: ") and said.count("\n") == 1 and said.endswith("]\n"), said
    return said


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of the guest artefacts as the fake VMM looks at."""
    catalog = Catalog(tmp_path_factory.mktemp("images"))
    catalog.set_current(ArtefactSet("r", "k", "6.1", "i", "t", "rootfs"))
    catalog.rootfs("rootfs").parent.mkdir(parents=True)
    catalog.rootfs("rootfs").write_bytes(bytes(1 << 20))
    return catalog.root


@pytest.fixture
def clean() -> Iterator[None]:
    """Nothing that counts may be left."""
    with nothing_left():
        yield


@contextmanager
def nothing_left() -> Iterator[None]:
    """Processes and descriptors; the fake VMM makes nothing else, and other users of this machine may."""
    before = Footprint.take()
    yield
    left: dict[str, list[str]] = {}

    def gone() -> bool:
        left.clear()
        left.update(Footprint.take().left_behind(before))
        return not {"processes", "descriptors"} & left.keys()

    try:
        until(gone, limit_s=10)
    except AssertionError:
        raise AssertionError(f"left behind: {left}") from None


@contextmanager
def up(data_dir: Path, images: Path, *options: str) -> Iterator[Platform]:
    """`wrenn up --driver fake`, ready; it must end with 0 and leave nothing."""
    more = ("--images-dir", str(images), *options)
    with nothing_left(), platform(data_dir, driver="fake", tag=f"u{os.getpid() % 10000}", options=more) as running:
        yield running


@contextmanager
def started(*arguments: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `wrenn` that the test ends itself; killed when it does not."""
    with log.open("wb") as file:
        process = subprocess.Popen([*WRENN, *map(str, arguments)], stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
