"""File access with the rights of one of the guest's users, off the event loop.

envd is root, so whoever asks for a file as ``user`` must be held to what ``user`` may do. The kernel keeps file system
credentials for each *thread* (setfsuid(2), setfsgid(2); setgroups as a raw system call, since the C library's wrapper
would change all threads, see nptl(7)). A thread of this pool takes them on for one call; leaving uid 0 also takes the
capabilities that override permissions out of the thread's effective set (capabilities(7), "effect of user ID
changes"), and coming back restores them.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from wrenn_sandbox.core.errors import Denied
from wrenn_sandbox.envd.users import User

T = TypeVar("T")

#: asm/unistd_64.h of x86-64, asm-generic/unistd.h of arm64.
_SYS_SETGROUPS = {"x86_64": 116, "aarch64": 159}[platform.machine()]
_LIBC = ctypes.CDLL(None, use_errno=True)
_NOBODY_KNOWS = 0xFFFFFFFF  # setfsuid(-1) changes nothing and returns the current one


class FileThreads:
    """A few threads for file work; ``run`` with a user, ``read`` and ``write`` of open files with nobody's."""

    def __init__(self, threads: int = 6) -> None:
        self._pool = ThreadPoolExecutor(threads, "envd-file")

    async def run(self, user: User, call: Callable[[], T]) -> T:
        """``call()`` with the rights of ``user``; what it raises comes out."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, _call_as, user, call)

    async def do(self, call: Callable[[], T]) -> T:
        """``call()`` with envd's own rights, for descriptors that are open already."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Let the threads end when what they do now is done."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _call_as(user: User, call: Callable[[], T]) -> T:
    with rights_of(user):
        return call()


@contextmanager
def rights_of(user: User) -> Iterator[None]:
    """Run the block with the file system rights of ``user`` on this thread only."""
    if user.uid == os.geteuid():
        yield
        return
    if os.geteuid() != 0:
        raise Denied(f"envd does not run as root, so it cannot touch files as {user.name}.", slug="not_root")
    groups = os.getgroups()
    _set_groups(user.groups)
    _LIBC.setfsgid(user.gid)
    _LIBC.setfsuid(user.uid)
    try:
        if _LIBC.setfsuid(_NOBODY_KNOWS) != user.uid or _LIBC.setfsgid(_NOBODY_KNOWS) != user.gid:
            raise Denied(f"The kernel does not let envd act as {user.name}.", slug="not_root")
        yield
    finally:
        _LIBC.setfsuid(0)
        _LIBC.setfsgid(os.getegid())
        _set_groups(groups)


def _set_groups(groups: tuple[int, ...] | list[int]) -> None:
    numbers = (ctypes.c_uint32 * len(groups))(*groups)
    if _LIBC.syscall(_SYS_SETGROUPS, len(groups), numbers) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
