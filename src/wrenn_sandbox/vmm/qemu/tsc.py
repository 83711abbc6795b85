"""The rate of this host's time stamp counter, for guests that must not measure it themselves.

Under TCG a guest's TSC is the host's. A guest kernel measures its rate against the PIT early in its boot, which fails
when the host is busy and the guest is not run for a few ms; and since the microvm machine gives it no other timer by
then, it waits for a tick that never comes and hangs for good. Told the rate (``tsc_early_khz=``), it asks nobody.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from functools import cache

_MEASURE_S = 0.05
_TRIES = 5
#: rdtsc; shl rdx, 32; or rax, rdx; ret (Intel SDM volume 2): the counter as a function's 64-bit result.
_READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")


@cache
def host_tsc_khz() -> int | None:
    """Counts per millisecond of CLOCK_MONOTONIC, to some ppm; None where there is no such counter. Blocks for 50 ms."""
    read = _reader()
    if read is None:
        return None
    first = _reading(read)
    time.sleep(_MEASURE_S)
    last = _reading(read)
    return round((last[0] - first[0]) * 1_000_000 / (last[1] - first[1]))


def _reader() -> Callable[[], int] | None:
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a policy forbids memory that is writable and executable
        return None
    code.write(_READ_TSC)
    mapped = ctypes.c_char.from_buffer(code)
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(mapped))

    def read() -> int:
        assert mapped is not None  # keeps the code mapped as long as this function lives
        return int(function())

    return read


def _reading(read: Callable[[], int]) -> tuple[int, int]:
    """Counter and clock (ns) of one moment: of several tries the one with the least time between its two looks."""
    tries = []
    for _ in range(_TRIES):
        before = time.monotonic_ns()
        count = read()
        after = time.monotonic_ns()
        tries.append((after - before, count, (before + after) // 2))
    _, count, clock = min(tries)
    return count, clock
