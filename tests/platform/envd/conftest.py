"""A real process service, the shim compiled from source, and what it may not leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.shim import compile_shim

ROOT = Path(__file__).resolve().parents[3]
SERVER = Path(__file__).with_name("process_server.py")
#: In the environment of every process that a test starts, so that none can hide.
MARK = "WRENN_TEST_MARK"


@dataclass(frozen=True)
class Guest:
    """A running service. Processes of it carry ``mark`` in their environment."""

    url: str
    pid: int
    mark: str

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def memory_kib(self) -> int:
        """Resident memory now."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")

    def children(self) -> list[str]:
        """Its children by pid and state, zombies included."""
        return [f"{p} {state}" for p, parent, state in _stats() if parent == self.pid]

    def marked(self) -> set[int]:
        """Every living process that it started or that those started, wherever they were moved."""
        found = set()
        for pid, _, state in _stats():
            with contextlib.suppress(OSError):
                if state not in "ZX" and f"{MARK}={self.mark}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    found.add(pid)
        return found


def _stats() -> Iterator[tuple[int, int, str]]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            yield int(entry.name), int(fields[1]), fields[0]


def eventually(holds: Callable[[], object], what: str) -> None:
    """Wait, with a generous end, until something that must come true is true."""
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError(f"never came true: {what}")


@pytest.fixture(scope="session")
def exec_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


@contextmanager
def running_guest(shim: Path, *constants: str, loop: str = "asyncio") -> Iterator[Guest]:
    """The service as a child process; on leaving it must end by itself and take every process with it."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    server = subprocess.Popen(
        [sys.executable, str(SERVER), *constants],
        stdout=subprocess.PIPE,
        env={**os.environ, "WRENN_EXEC_SHIM": str(shim), "LOOP": loop},
    )
    assert server.stdout is not None
    guest = Guest(server.stdout.readline().decode().strip(), server.pid, mark)
    try:
        assert guest.url, "the service did not start"
        yield guest
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()
            code = server.wait()
        server.stdout.close()
        with contextlib.suppress(AssertionError):
            eventually(lambda: not guest.marked(), "no process left")
        left = guest.marked()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert left == set(), "the service left processes behind"
    assert code == 0


@pytest.fixture
def guest(exec_shim: Path) -> Iterator[Guest]:
    with running_guest(exec_shim) as running:
        yield running


@pytest.fixture
def hasty_guest(exec_shim: Path) -> Iterator[Guest]:
    """A guest with its constants of seconds cut to fractions."""
    with running_guest(exec_shim, "STALL_S=0.5", "KEEP_ENDED_S=0.3") as running:
        yield running
