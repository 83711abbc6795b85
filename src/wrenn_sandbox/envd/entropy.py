"""The kernel's random generator after a restore.

Every copy of a memory snapshot holds the same generator state, and writing to /dev/urandom does not change what is
read next until the kernel reseeds by itself. So the host's bytes go in with credit, and the reseed is asked for.
"""

from __future__ import annotations

import fcntl
import os
import struct

from wrenn_sandbox.core.errors import Invalid

#: ``_IOW('R', 0x03, int[2])`` and ``_IO('R', 0x07)`` of linux/random.h; the same on x86-64 and arm64.
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207

MIN_BYTES, MAX_BYTES = 32, 512


def check(entropy: bytes) -> None:
    """Raise Invalid (``invalid_entropy``) unless this is as much as a reseed needs."""
    if not MIN_BYTES <= len(entropy) <= MAX_BYTES:
        raise Invalid(
            f"entropy must hold {MIN_BYTES} to {MAX_BYTES} bytes of the host's randomness in base64, "
            f"not {len(entropy)} bytes.",
            slug="invalid_entropy",
        )


def pool_info(entropy: bytes) -> bytes:
    """``struct rand_pool_info`` (linux/random.h): credit in bits, length in bytes, the bytes."""
    return struct.pack("=ii", 8 * len(entropy), len(entropy)) + entropy


def reseed(entropy: bytes) -> None:
    """Mix ``entropy`` into the kernel's pool and reseed the generator now; needs CAP_SYS_ADMIN. Raises OSError."""
    check(entropy)
    device = os.open("/dev/urandom", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, RNDADDENTROPY, pool_info(entropy))
        fcntl.ioctl(device, RNDRESEEDCRNG)
    finally:
        os.close(device)
