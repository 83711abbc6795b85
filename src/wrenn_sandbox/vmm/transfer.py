"""Pages between an array here and the memory of a process, many at once and copied once (process_vm_readv(2)).

The process may be this one: its mappings of files are then read as they are, with an error instead of a SIGBUS where a
file has become too short. A vector of 1,024 runs takes one call, whereas Python would need a millisecond for as many.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wrenn_sandbox.core.extents import PAGE, Pages

_IOV_MAX = 1024  # limits.h

_Call = Callable[[int, int, int, int, int, int], int]
_libc = ctypes.CDLL(None, use_errno=True)
for _function in (_libc.process_vm_readv, _libc.process_vm_writev):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Area:
    """Memory of the process ``pid`` that begins at ``address``, in which pages are counted."""

    pid: int
    address: int

    def read(self, pages: Pages, content: NDArray[np.uint8], rows: Pages | None = None) -> None:
        """Read these pages into rows of ``content``: the first ones, or ``rows``. OSError; ESRCH without a process."""
        self._move(_libc.process_vm_readv, pages, content, rows)

    def write(self, pages: Pages, content: NDArray[np.uint8]) -> None:
        """Write the first rows of ``content`` over these pages. OSError; ESRCH without a process."""
        self._move(_libc.process_vm_writev, pages, content, None)

    def _move(self, call: _Call, pages: Pages, content: NDArray[np.uint8], rows: Pages | None) -> None:
        rows = np.arange(len(pages), dtype=np.int64) if rows is None else rows
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(content)):
            raise IndexError("a row outside the array")
        for at in range(0, len(pages), _IOV_MAX):
            here = _vector(content.ctypes.data, rows[at : at + _IOV_MAX])
            there = _vector(self.address, pages[at : at + _IOV_MAX])
            done = call(self.pid, here.ctypes.data, len(here), there.ctypes.data, len(there), 0)
            if done != int(there[:, 1].sum()):
                number = ctypes.get_errno() if done < 0 else errno.EFAULT
                raise OSError(number, os.strerror(number))


def _vector(address: int, pages: Pages) -> NDArray[np.uint64]:
    """The runs of ``pages`` as an array of struct iovec."""
    starts = np.flatnonzero(np.diff(pages, prepend=-2) != 1)
    vector = np.empty((len(starts), 2), dtype=np.uint64)
    vector[:, 0] = pages[starts] * PAGE + address
    vector[:, 1] = np.diff(starts, append=len(pages)) * PAGE
    return vector
