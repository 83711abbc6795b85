"""The guest's wall clock after a restore, from the machine's own clock device.

A restored guest's clock is behind by the age of its snapshot. /dev/ptp0 (the host's clock through KVM) is exact;
/dev/rtc0 counts whole seconds. A time that a request names is never used: the network decides how old that is.
"""

from __future__ import annotations

import calendar
import fcntl
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

#: ``_IOR('p', 0x09, struct rtc_time)`` of linux/rtc.h, a struct of nine ints.
RTC_RD_TIME = 0x80247009
RTC_TIME = struct.Struct("=9i")

#: A smaller error is left to chronyd, which slews it.
STEP_THRESHOLD_S = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What a clock device says: the time, and the system's time at the same moment, both in unix seconds."""

    device: str
    device_s: float
    system_s: float

    @property
    def offset_s(self) -> float:
        """How far the system's clock is behind."""
        return self.device_s - self.system_s


def step(read: Callable[[], Reading | None] | None = None, set_time: Callable[[float], None] | None = None) -> float:
    """Step CLOCK_REALTIME when it is more than a second off; returns by how many seconds it was moved.

    Without any clock device nothing is moved: chronyd alone repairs the clock then. Raises OSError when the clock
    cannot be set.
    """
    reading = (read or read_device)()
    if reading is None or abs(reading.offset_s) <= STEP_THRESHOLD_S:
        return 0.0
    (set_time or _set_realtime)(reading.offset_s)
    return reading.offset_s


def read_device() -> Reading | None:
    """The first clock device there is; None when the machine has none that answers."""
    for device, reader in (("/dev/ptp0", _read_ptp), ("/dev/rtc0", _read_rtc)):
        try:
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            device_s = reader(descriptor)
            return Reading(device, device_s, time.time())
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return None


def clock_id(descriptor: int) -> int:
    """``FD_TO_CLOCKID`` of clock_getres(2): the dynamic clock behind an open device."""
    return (~descriptor << 3) | 3


def rtc_seconds(raw: bytes) -> float:
    """Unix time of a ``struct rtc_time`` in UTC, in the middle of the second it names."""
    second, minute, hour, day, month, year, *_ = RTC_TIME.unpack(raw)
    return calendar.timegm((year + 1900, month + 1, day, hour, minute, second)) + 0.5


def _read_ptp(descriptor: int) -> float:
    return time.clock_gettime(clock_id(descriptor))


def _read_rtc(descriptor: int) -> float:
    return rtc_seconds(fcntl.ioctl(descriptor, RTC_RD_TIME, bytes(RTC_TIME.size)))


def _set_realtime(offset_s: float) -> None:
    time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + round(offset_s * 1e9))
