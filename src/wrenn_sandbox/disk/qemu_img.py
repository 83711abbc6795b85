"""qemu-img as a child process that is dead and reaped before the call returns. Blocks: call it in a thread."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.disk import durability
from wrenn_sandbox.image.command import find_tool

#: A disk of 20 GiB of data takes minutes; longer means that the host's disk does not answer.
LIMIT_S = 1800.0
_POLL_S = 0.05
_SHOWN_CHARS = 1000
#: Less free than this after a failure, and the failure is for want of room: qemu-img says so in words only.
_ROOM_BYTES = 4 << 20


def run(*words: str, room: Path, wanted: Callable[[], bool], accepted: tuple[int, ...] = (0,)) -> int:
    """Run ``qemu-img *words`` and return its exit code, one of ``accepted``.

    ``room`` is where it writes. When ``wanted`` turns False, it is killed. Raises Unavailable (``tool_missing``,
    ``agent_stopping``, ``disk_unavailable``) or Exhausted (``host_disk_full``).
    """
    program = find_tool("qemu-img")
    # An agent that is killed takes it along (PR_SET_PDEATHSIG, prctl(2)). The kernel goes by the thread that started
    # it: ours, which waits here.
    along = (find_tool("setpriv"), "--pdeathsig", "KILL", "--")
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*along, program, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        )
        try:
            code = _ended(process, wanted)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code in accepted:
            return code
        output.seek(0)
        said = output.read().decode(errors="replace").strip()[-_SHOWN_CHARS:]
    free = os.statvfs(room)
    if free.f_bfree * free.f_frsize < _ROOM_BYTES:
        raise durability.disk_full()
    raise Unavailable(f"qemu-img {words[0]} failed: {said or f'exit code {code}'}", slug="disk_unavailable")


def _ended(process: subprocess.Popen[bytes], wanted: Callable[[], bool]) -> int:
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            return process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            if not wanted():
                raise Unavailable("This host agent is stopping; try again later.", slug="agent_stopping") from None
            if time.monotonic() > deadline:
                raise Unavailable("qemu-img does not come to its end.", slug="disk_unavailable") from None
