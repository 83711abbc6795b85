import struct

import pytest

from wrenn_sandbox.net.tap import ifreq


def test_a_tap_without_packet_information_and_with_the_vnet_header() -> None:
    raw = ifreq("tap0")
    assert len(raw) == 40
    name, flags = struct.unpack_from("16sH", raw)
    assert name.rstrip(b"\0") == b"tap0"
    assert flags == 0x0002 | 0x1000 | 0x4000


@pytest.mark.parametrize("name", ["", "a" * 16, "täp"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        ifreq(name)


def test_the_longest_name_fits() -> None:
    assert ifreq("a" * 15)[:16] == b"a" * 15 + b"\0"
