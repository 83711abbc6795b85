"""How fast this host's time stamp counter runs, for the guest kernel's ``tsc_early_khz=``.

An emulated guest reads the host's counter, but finds its rate by timing it against the PIT, a loop that fails as soon
as the host's cores are shared ("Fast TSC calibration failed"). The kernel then has no clock at all on a microvm machine
and hangs. Told the rate, it does not measure. Under KVM it has kvm-clock and needs nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import platform
import time

#: rdtsc; shl rdx, 32; or rax, rdx; ret  (Intel SDM volume 2, RDTSC)
_READ_COUNTER = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_INTERVAL_S = 0.1
_ATTEMPTS = 20


async def tsc_khz() -> int:
    """The counter's rate in kHz, good to a few parts in 100 000; 0 where it cannot be read (then say nothing).

    Two calls give slightly different numbers: add the parameter to what the kernel is told, never to what names or
    compares templates.
    """
    if platform.machine() != "x86_64":
        return 0
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return 0  # a host whose policy forbids writable code
    code.write(_READ_COUNTER)
    address = ctypes.c_char.from_buffer(code)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(address))
    try:
        ticks, nanoseconds = _moment(read)
        await asyncio.sleep(_INTERVAL_S)
        later_ticks, later_nanoseconds = _moment(read)
    finally:
        del address
        code.close()
    return rate_khz(later_ticks - ticks, later_nanoseconds - nanoseconds)


def rate_khz(ticks: int, nanoseconds: int) -> int:
    """Ticks in a span of time, as kHz, rounded."""
    return (ticks * 1_000_000 + nanoseconds // 2) // nanoseconds


def _moment(read: ctypes._CFunctionType) -> tuple[int, int]:
    """Counter and clock of one moment: of several tries the one the scheduler disturbed least."""
    best: tuple[int, int, int] | None = None
    for _ in range(_ATTEMPTS):
        before = time.monotonic_ns()
        ticks = read()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, ticks, (before + after) // 2)
    assert best is not None
    return best[1], best[2]
