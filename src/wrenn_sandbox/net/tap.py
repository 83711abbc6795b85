"""The tap device of a slot, opened the way a VMM wants it."""

from __future__ import annotations

import fcntl
import os
import struct

_TUN = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFNAMSIZ = 16


def ifreq(name: str) -> bytes:
    """The struct ifreq (linux/if.h, 40 bytes) of TUNSETIFF: a tap without packet information, with the vnet header."""
    raw = name.encode("ascii")
    if not 0 < len(raw) < _IFNAMSIZ:
        raise ValueError(f"{name!r} is not an interface name")
    return struct.pack(f"{_IFNAMSIZ}sH22x", raw, _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)


def open_tap(name: str) -> int:
    """Open tap ``name`` of the calling thread's namespace, making it when missing; the caller owns the descriptor.

    The device is persistent: it, its addresses and its filter outlive a VMM or an agent that dies, and go with the
    namespace. The descriptor is close-on-exec and non-blocking.
    """
    fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, ifreq(name))
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except BaseException:
        os.close(fd)
        raise
    return fd
