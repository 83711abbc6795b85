"""A bound for what a stranger can make a server keep before anybody asks who it is: the head of a request.

uvicorn's httptools protocol collects request line and headers without a limit. Here a request whose head grows above
``MAX_HEAD_BYTES`` is answered with 431 and its connection closed. Trailers, which would be added to the headers that
a handler may already have looked at, are dropped.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: As much as the relay takes from a program's answer in one line.
MAX_HEAD_BYTES = 64 * 1024
_SENTENCE = f"The request line and headers are longer than {MAX_HEAD_BYTES} bytes.".encode()
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\n"
    b"connection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_SENTENCE), _SENTENCE)
)


class _TooLong(Exception):
    """Ends the parsing; the answer has been written."""


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol with a limit on heads; give it to ``uvicorn.Config`` as ``http``."""

    _in_head = False
    _head_bytes = 0  # of the pieces that are whole
    _unfinished_bytes = 0  # of everything that came before the head was complete
    _refused = False

    def data_received(self, data: bytes) -> None:
        """Parse; what arrives while a head is not complete counts, since the parser keeps it."""
        if self._refused:
            return
        super().data_received(data)
        if self._in_head and not self._refused:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > MAX_HEAD_BYTES:
                self._refuse()

    def on_message_begin(self) -> None:
        """A new head."""
        self._in_head, self._head_bytes, self._unfinished_bytes = True, 0, 0
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
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Say that the request is malformed, unless it has had its answer."""
        if not self._refused:
            super().send_400_response(msg)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()
            raise _TooLong

    def _refuse(self) -> None:
        self._refused = True
        self.transport.write(_REFUSAL)
        self.transport.close()
