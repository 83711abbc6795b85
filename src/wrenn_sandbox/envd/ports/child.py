"""A child process with one owner: started in its own group, killed as a group, reaped once.

asyncio's own subprocess support would keep a thread for each child to wait for it (Python 3.11), in the daemon's memory
snapshot too. A pidfd is readable when the process has ended (pidfd_open(2)), which the event loop can watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

#: Seconds that killed orphans of the group may take to disappear.
GROUP_TIMEOUT_S = 1.0


class Child:
    """A process started by ``start``. Nobody else may wait for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @classmethod
    def start(cls, argv: list[str]) -> Child:
        """Start ``argv`` in a process group of its own, without any of our descriptors. Raises OSError."""
        nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        signals = [signal.SIGINT, signal.SIGTERM, signal.SIGPIPE]
        pid = os.posix_spawnp(argv[0], argv, environment, file_actions=nowhere, setpgroup=0, setsigdef=signals)
        return cls(pid)

    @property
    def running(self) -> bool:
        """Not reaped yet."""
        return self.exit_code is None

    async def wait(self) -> int:
        """The exit code, negative for a signal, once the whole group is gone; any number may wait."""
        await self._ended.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError, TimeoutError):
            async with asyncio.timeout(GROUP_TIMEOUT_S):
                while True:  # its orphans are killed by now, but not our children: their end has no descriptor
                    os.killpg(self.pid, 0)
                    await asyncio.sleep(0.005)
        return self.exit_code or 0

    def kill(self) -> None:
        """SIGKILL for the whole group. No-op once it was reaped: its number may be somebody else's."""
        if self.running:
            os.killpg(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        if os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        # Until it is reaped its number stays taken, so this reaches what it forked and nobody else.
        os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exit_code = os.waitstatus_to_exitcode(status)
        self._ended.set()
