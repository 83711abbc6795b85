"""The real qemu-img as a child that does not outlive who started it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from wrenn_sandbox.disk import qemu_img

pytestmark = pytest.mark.platform

#: Starts a qemu-img that would go on for hours, in a thread, as the agent does.
AGENT = """
import sys, threading
from pathlib import Path
from wrenn_sandbox.disk import qemu_img
words = ("bench", "-q", "-c", "2000000000", "-f", "raw", sys.argv[1])
threading.Thread(target=qemu_img.run, args=words, kwargs={"room": Path("/tmp"), "wanted": lambda: True}).start()
"""


def test_it_does_its_work(tmp_path: Path) -> None:
    words = ("create", "-q", "-f", "raw", str(tmp_path / "disk"), "1M")
    assert qemu_img.run(*words, room=tmp_path, wanted=lambda: True) == 0
    assert (tmp_path / "disk").stat().st_size == 1 << 20


def test_an_agent_that_is_killed_takes_it_along(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with subprocess.Popen([sys.executable, "-c", AGENT, str(disk)]) as agent:
        try:
            await_that(lambda: of(disk, b"/qemu-img") != [], "it runs")
            assert agent.poll() is None
        finally:
            agent.kill()
    await_that(lambda: of(disk) == [], "it is gone")


def of(disk: Path, what: bytes = b"") -> list[int]:
    """Processes whose command line names the disk and begins with what."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if bytes(disk) in words and words[0].endswith(what):
                found.append(int(entry.name))
    return found


def await_that(holds, what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.02)
