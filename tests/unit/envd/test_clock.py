from __future__ import annotations

import os
import time

import pytest

from wrenn_sandbox.envd import clock
from wrenn_sandbox.envd.clock import RTC_TIME, Reading


@pytest.mark.parametrize(
    ("offset_s", "moved"), [(0.0, False), (1.0, False), (-1.0, False), (1.5, True), (-3600.0, True)]
)
def test_steps_only_what_is_more_than_a_second_off(offset_s: float, moved: bool) -> None:
    steps: list[float] = []
    reading = Reading("/dev/ptp0", 1000.0 + offset_s, 1000.0)
    assert clock.step(lambda: reading, steps.append) == (offset_s if moved else 0.0)
    assert steps == ([offset_s] if moved else [])


def test_without_a_device_nothing_is_moved() -> None:
    assert clock.step(lambda: None, lambda _: pytest.fail("moved")) == 0.0


def test_a_clock_that_cannot_be_set_is_an_error() -> None:
    def refuse(_: float) -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        clock.step(lambda: Reading("/dev/rtc0", 10.0, 0.0), refuse)


def test_clock_id_of_a_descriptor() -> None:
    # FD_TO_CLOCKID of linux/posix-timers.h: three low bits 011, the rest the complement.
    assert clock.clock_id(3) == -29
    assert clock.clock_id(0) & 7 == 3
    assert clock.clock_id(5) >> 3 == ~5


def test_rtc_time_is_the_middle_of_its_second() -> None:
    raw = RTC_TIME.pack(56, 34, 12, 23, 10, 126, 0, 0, 0)
    assert clock.rtc_seconds(raw) == 1795437296.5
    assert time.gmtime(clock.rtc_seconds(raw))[:6] == (2026, 11, 23, 12, 34, 56)


def test_rtc_ioctl_number() -> None:
    assert RTC_TIME.size == 36
    assert 2 << 30 | 36 << 16 | ord("p") << 8 | 0x09 == clock.RTC_RD_TIME


def test_ptp_comes_first_and_a_device_that_fails_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    real_open = os.open
    monkeypatch.setattr(clock.os, "open", lambda path, flags: real_open("/dev/null", flags))

    def broken(_: int) -> float:
        raise OSError

    monkeypatch.setattr(clock, "_read_rtc", lambda _: 42.0)
    monkeypatch.setattr(clock, "_read_ptp", lambda _: 41.0)
    first = clock.read_device()
    assert first is not None
    assert (first.device, first.device_s) == ("/dev/ptp0", 41.0)
    monkeypatch.setattr(clock, "_read_ptp", broken)
    second = clock.read_device()
    assert second is not None
    assert (second.device, second.device_s) == ("/dev/rtc0", 42.0)
    monkeypatch.setattr(clock, "_read_rtc", broken)
    assert clock.read_device() is None
