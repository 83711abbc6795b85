"""An SNTP server for one sandbox, answering from the host's clock (RFC 4330, RFC 5905 §7.3)."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PORT = 123
_PACKET_BYTES = 48
#: Seconds from 1900-01-01 to 1970-01-01.
_ERA_OFFSET_S = 2_208_988_800
_MODE_CLIENT, _MODE_SERVER = 3, 4
#: What chrony's ``local`` advertises: usable, and worse than any server on the network.
_STRATUM = 10
_PRECISION = -20  # about a microsecond
_ROOT_DISPERSION = 0x0000_028F  # 10 ms in 16.16 fixed point
_REFERENCE_ID = bytes((127, 127, 1, 1))  # the local clock
_HEADER = struct.Struct("!BBBbII4s")  # poll is signed on the wire; it is only given back
_TIMESPEC = struct.Struct("qq")
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the same number marks the ancillary data
_MAX_REQUEST_BYTES = 1024


def timestamp(unix_ns: int) -> bytes:
    """64-bit NTP time: seconds since 1900 modulo 2^32, then a binary fraction."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return struct.pack("!II", (seconds + _ERA_OFFSET_S) & 0xFFFF_FFFF, (nanoseconds << 32) // 1_000_000_000)


def answer(request: bytes, received_ns: int, sent_ns: int) -> bytes | None:
    """The reply to a client's packet; None when it is not one. Never longer than the request."""
    if len(request) < _PACKET_BYTES:
        return None
    version, mode = request[0] >> 3 & 7, request[0] & 7
    if mode != _MODE_CLIENT or not 1 <= version <= 4:
        return None
    header = _HEADER.pack(
        version << 3 | _MODE_SERVER, _STRATUM, request[2], _PRECISION, 0, _ROOT_DISPERSION, _REFERENCE_ID
    )
    originate = request[40:48]  # the client's transmit time, given back unchanged
    return header + timestamp(received_ns) + originate + timestamp(received_ns) + timestamp(sent_ns)


@contextmanager
def serve(server: socket.socket) -> Iterator[None]:
    """Answer on a bound, non-blocking socket until the context is left, which closes it. Needs a running event loop."""
    loop = asyncio.get_running_loop()
    with server:
        server.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        loop.add_reader(server.fileno(), _answer_pending, server)
        try:
            yield
        finally:
            loop.remove_reader(server.fileno())


def _answer_pending(server: socket.socket) -> None:
    for _ in range(16):
        try:
            request, ancillary, _, address = server.recvmsg(_MAX_REQUEST_BYTES, socket.CMSG_SPACE(_TIMESPEC.size))
        except OSError:  # nothing more, or an ICMP error for an earlier answer
            return
        now_ns = time.time_ns()
        reply = answer(request, received_ns(ancillary) or now_ns, now_ns)
        if reply is not None:
            with suppress(OSError):  # a guest that does not read loses its answer
                server.sendto(reply, address)


def received_ns(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """When the kernel got the packet, whatever the event loop was busy with since (SO_TIMESTAMPNS, socket(7))."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return None
