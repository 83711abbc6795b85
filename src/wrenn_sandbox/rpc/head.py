"""A bound for what a stranger can make a server keep before anybody asks who it is: the head of a request.

uvicorn's httptools protocol collects request line and headers without a limit, for as long as it takes. Here a request
whose head grows above ``MAX_HEAD_BYTES`` is answered with 431, one whose head takes longer than ``HEAD_LIMIT_S`` (from
its first byte, or from the connection) with 408, and the connection is closed. Trailers, which would be added to the
headers that a handler may already have looked at, are dropped.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: As much as the relay takes from a program's answer in one line.
MAX_HEAD_BYTES = 64 * 1024
#: Enough for the slowest line; a browser that opens a connection ahead of need opens it again.
HEAD_LIMIT_S = 30.0


def _refusal(status: str, sentence: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    return f"{head}content-length: {len(sentence)}\r\n\r\n{sentence}".encode()


_TOO_LONG = _refusal(
    "431 Request Header Fields Too Large", f"The request line and headers are longer than {MAX_HEAD_BYTES} bytes."
)
_TOO_SLOW = _refusal("408 Request Timeout", f"The request line and headers took longer than {HEAD_LIMIT_S:.0f} s.")


class _TooLong(Exception):
    """Ends the parsing; the answer has been written."""


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol with a limit on heads; give it to ``uvicorn.Config`` as ``http``."""

    _in_head = False
    _head_bytes = 0  # of the pieces that are whole
    _unfinished_bytes = 0  # of everything that came before the head was complete
    _refused = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is awaited from now on."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_LIMIT_S, self._refuse, _TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; what arrives while a head is not complete counts, since the parser keeps it."""
        if self._refused:
            return
        super().data_received(data)
        if self._in_head and not self._refused:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > MAX_HEAD_BYTES:
                self._refuse(_TOO_LONG)

    def on_message_begin(self) -> None:
        """A new head."""
        self._in_head, self._head_bytes, self._unfinished_bytes = True, 0, 0
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_LIMIT_S, self._refuse, _TOO_SLOW)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if self._in_head:
            self._count(len(name) + len(value))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Say that the request is malformed, unless it has had its answer."""
        if not self._refused:
            super().send_400_response(msg)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_TOO_LONG)
            raise _TooLong

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, answer: bytes) -> None:
        self._refused = True
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()
