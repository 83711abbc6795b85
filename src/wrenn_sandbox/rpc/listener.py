"""The socket a server listens on: bound before anything else is begun, so that a taken address is said at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from wrenn_sandbox.core.errors import Unavailable

_BACKLOG = 2048


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound and listening socket. Port 0 takes any free one, ``::`` takes IPv4 too.

    Raises Unavailable (``address_in_use``).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise Unavailable(f"Cannot listen on {host}:{port}: {error.strerror}.", slug="address_in_use") from error
    with listener:
        # asyncio turns Nagle off only on sockets that name their protocol, and a delayed answer costs 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener


def url_of(listener: socket.socket) -> str:
    """Where it answers, over plain HTTP."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
