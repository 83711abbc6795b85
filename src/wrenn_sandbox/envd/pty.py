"""Pseudo-terminals: pty(7), ioctl_tty(2)."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from dataclasses import dataclass

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.envd.users import User

DEFAULT_COLS = 80
DEFAULT_ROWS = 24
#: ``struct winsize`` holds unsigned shorts.
MAX_CELLS = 0xFFFF


@dataclass(frozen=True, slots=True)
class Size:
    """A terminal's size in character cells."""

    cols: int
    rows: int


def size_of(cols: int, rows: int) -> Size:
    """The size a request means; 0 is the default. ConnectError ``invalid_argument`` beyond what a terminal can be."""
    if cols > MAX_CELLS or rows > MAX_CELLS:
        raise ConnectError(Code.INVALID_ARGUMENT, f"A terminal has at most {MAX_CELLS} columns and rows.")
    return Size(cols or DEFAULT_COLS, rows or DEFAULT_ROWS)


def open_pty(size: Size, user: User) -> tuple[int, int]:
    """A new terminal of ``user``: our end, non-blocking, and the process's end. Both are close-on-exec."""
    ours, theirs = os.openpty()
    try:
        resize(ours, size)
        os.set_blocking(ours, False)
        if os.geteuid() == 0:
            os.fchown(theirs, user.uid, -1)
    except BaseException:
        os.close(ours)
        os.close(theirs)
        raise
    return ours, theirs


def resize(fd: int, size: Size) -> None:
    """Set the size; the kernel tells the foreground group by SIGWINCH."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.cols, 0, 0))


def foreground_group(fd: int) -> int | None:
    """The process group that the terminal of our end ``fd`` belongs to now; None when there is none."""
    try:
        return os.tcgetpgrp(fd) or None
    except OSError:
        return None
