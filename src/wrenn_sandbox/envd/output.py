"""The output of one process on its way to any number of streams, in bounded memory.

One chain of chunks, in the order they were read; every stream has a cursor on it. What the slowest cursor has read
and the tail does not keep is garbage. Three rules make it safe:

- the chain is *full* when the slowest cursor is a window behind; its owner then reads no more from the process until
  it is *roomy* again. So a process runs as fast as the slowest stream that is still making progress;
- without a cursor nothing is ever full: output beyond the tail goes, as a stream gets what follows its attachment;
- a cursor that makes no progress for too long is cut, which its reader is told. Output is never dropped silently.

Pure: no clock (the times are given), no I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

#: Unread bytes of the slowest stream at which reading from the process stops.
WINDOW_BYTES = 256 * 1024
#: Bytes of the last output kept for a stream that asks for a replay.
TAIL_BYTES = 64 * 1024
#: What a chunk costs beside its bytes; counted, or a process that writes single bytes would cost a hundredfold.
CHUNK_OVERHEAD_BYTES = 256


class Source(enum.Enum):
    """Where a chunk came from; the values are the field names of the wire's DataEvent."""

    STDOUT = "stdout"
    STDERR = "stderr"
    PTY = "pty"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One read from one source."""

    source: Source
    data: bytes


class _Link:
    """A place in the chain: the chunk at it, once there is one, and the cost of all before it."""

    __slots__ = ("chunk", "next", "offset")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.chunk: Chunk | None = None
        self.next: _Link | None = None


class Cursor:
    """How far one stream has read. ``notify`` is called when there may be something new for it."""

    __slots__ = ("cut", "link", "moved_at", "notify")

    def __init__(self, link: _Link, now: float, notify: Callable[[], None]) -> None:
        self.link = link
        self.moved_at = now
        self.notify = notify
        self.cut = False


class OutputLog:
    """The chain; see the module."""

    def __init__(self, window_bytes: int = WINDOW_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._window = window_bytes
        self._tail = tail_bytes
        self._end = _Link(0)
        self._tail_start: _Link = self._end
        self._cursors: set[Cursor] = set()

    def append(self, chunk: Chunk) -> None:
        """Add a chunk and tell every cursor."""
        link = self._end
        link.chunk = chunk
        link.next = self._end = _Link(link.offset + len(chunk.data) + CHUNK_OVERHEAD_BYTES)
        start = self._tail_start
        while self._end.offset - start.offset > self._tail and start.next is not None:
            start = start.next
        self._tail_start = start
        self.notify()

    def notify(self) -> None:
        """Wake every cursor's reader."""
        for cursor in self._cursors:
            cursor.notify()

    def attach(self, now: float, notify: Callable[[], None], *, replay: bool = False) -> Cursor:
        """A cursor that sees what follows; with ``replay`` the tail first."""
        cursor = Cursor(self._tail_start if replay else self._end, now, notify)
        self._cursors.add(cursor)
        return cursor

    def detach(self, cursor: Cursor) -> None:
        """Forget a cursor. Harmless when it is forgotten already."""
        self._cursors.discard(cursor)

    def next(self, cursor: Cursor, now: float) -> Chunk | None:
        """The next chunk for ``cursor``, None when it has read everything or was cut."""
        cursor.moved_at = now
        link = cursor.link
        if cursor.cut or link.next is None:
            return None
        cursor.link = link.next
        return link.chunk

    @property
    def unread(self) -> int:
        """Cost of what the slowest cursor has still to read; 0 without cursors."""
        return max((self._end.offset - cursor.link.offset for cursor in self._cursors), default=0)

    @property
    def full(self) -> bool:
        """Nothing more should be read from the process."""
        return self.unread >= self._window

    @property
    def roomy(self) -> bool:
        """Reading may go on. Below ``full`` by half a window, so that it is not switched at every chunk."""
        return self.unread <= self._window // 2

    def cut_stalled(self, before: float) -> int:
        """Cut every cursor that lags and last moved at or before ``before``; how many there were."""
        stalled = [c for c in self._cursors if c.link is not self._end and c.moved_at <= before]
        for cursor in stalled:
            self._cursors.discard(cursor)
            cursor.cut = True
            cursor.link = self._end
            cursor.notify()
        return len(stalled)

    def oldest_move(self) -> float | None:
        """When the laggard that moved longest ago did so; None when no cursor lags."""
        return min((c.moved_at for c in self._cursors if c.link is not self._end), default=None)

    def forget_tail(self) -> None:
        """Keep nothing for replays any more; what attached cursors have to read stays."""
        self._tail_start = self._end
