from __future__ import annotations

import pytest

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.envd import entropy


@pytest.mark.parametrize("size", [0, 31, 513])
def test_too_little_and_too_much_are_refused(size: int) -> None:
    with pytest.raises(Invalid) as caught:
        entropy.check(bytes(size))
    assert caught.value.slug == "invalid_entropy"


def test_bounds_are_inclusive() -> None:
    entropy.check(bytes(32))
    entropy.check(bytes(512))


def test_rand_pool_info() -> None:
    info = entropy.pool_info(b"\xaa" * 32)
    assert info == (256).to_bytes(4, "little") + (32).to_bytes(4, "little") + b"\xaa" * 32


def test_ioctl_numbers_are_those_of_the_header() -> None:
    write, size, kind = 1, 8, ord("R")
    assert write << 30 | size << 16 | kind << 8 | 0x03 == entropy.RNDADDENTROPY
    assert kind << 8 | 0x07 == entropy.RNDRESEEDCRNG


def test_short_entropy_reaches_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy.fcntl, "ioctl", lambda *_: pytest.fail("ioctl called"))
    with pytest.raises(Invalid):
        entropy.reseed(b"short")


def test_reseed_adds_then_reseeds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(entropy.fcntl, "ioctl", lambda _fd, number, *_: calls.append(number))
    entropy.reseed(bytes(32))
    assert calls == [entropy.RNDADDENTROPY, entropy.RNDRESEEDCRNG]
