"""Files that a VMM may write for a time: its uid's own meanwhile, root's before and after.

Afterwards everybody may read them, since they are then layers below VMMs of any other uid. A loan is held by
descriptor, so a file may change its name meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LENT, _RETURNED = 0o600, 0o644


class Loan:
    """What one VMM has on loan. Made by ``lent``."""

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid
        self._fds: list[int] = []

    def give(self, path: Path, flags: int = os.O_RDONLY) -> int:
        """Lend ``path``; the descriptor, opened with ``flags``, is closed when it is taken back."""
        fd = os.open(path, flags | os.O_CLOEXEC)
        self._fds.append(fd)
        os.fchown(fd, self._uid, self._gid)
        os.fchmod(fd, _LENT)
        return fd

    def take_back(self, fd: int) -> None:
        """End the loan of one file."""
        self._fds.remove(fd)
        try:
            return_to_root(fd)
        finally:
            os.close(fd)

    def keep_only(self, fd: int) -> None:
        """End the loan of every other file."""
        for other in [held for held in self._fds if held != fd]:
            self.take_back(other)

    def forget(self) -> None:
        """Leave everything on loan, for somebody else to take back."""
        while self._fds:
            os.close(self._fds.pop())

    def end(self) -> None:
        """Take everything back."""
        while self._fds:
            self.take_back(self._fds[-1])


def return_to_root(fd: int) -> None:
    """Root's again, and readable as a layer."""
    os.fchown(fd, 0, 0)
    os.fchmod(fd, _RETURNED)


@contextmanager
def lending(uid: int, gid: int) -> Iterator[Loan]:
    """Everything given inside is taken back; the VMM must be dead when the context is left."""
    loan = Loan(uid, gid)
    try:
        yield loan
    finally:
        loan.end()
