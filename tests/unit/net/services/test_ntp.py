import socket
import struct

import pytest

from wrenn_sandbox.net.services.ntp import answer, received_ns, timestamp

NOW_NS = 1_795_000_000_250_000_000
REQUEST = bytes([0x23, 0, 6, 0]) + bytes(36) + b"\x01\x02\x03\x04\x05\x06\x07\x08"


def test_timestamp_counts_from_1900_with_a_binary_fraction() -> None:
    assert timestamp(0) == struct.pack("!II", 2_208_988_800, 0)
    assert timestamp(NOW_NS) == struct.pack("!II", 1_795_000_000 + 2_208_988_800, 1 << 30)


def test_timestamp_wraps_into_the_next_era() -> None:
    assert timestamp(2_085_978_496 * 1_000_000_000) == bytes(8)


def test_the_reply_carries_the_clients_time_back() -> None:
    reply = answer(REQUEST, NOW_NS, NOW_NS + 500_000_000)
    assert reply is not None
    assert len(reply) == 48
    leap, version, mode = reply[0] >> 6, reply[0] >> 3 & 7, reply[0] & 7
    assert (leap, version, mode) == (0, 4, 4)
    assert 1 <= reply[1] < 16
    assert reply[2] == REQUEST[2]
    assert reply[24:32] == REQUEST[40:48]
    assert reply[32:40] == timestamp(NOW_NS)
    assert reply[40:48] == timestamp(NOW_NS + 500_000_000)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_the_version_is_the_clients(version: int) -> None:
    reply = answer(bytes([version << 3 | 3]) + REQUEST[1:], NOW_NS, NOW_NS)
    assert reply is not None
    assert reply[0] == version << 3 | 4


@pytest.mark.parametrize(
    "packet",
    [b"", REQUEST[:47], b"\x24" + REQUEST[1:], b"\x26" + REQUEST[1:], b"\x03" + REQUEST[1:], b"\x3b" + REQUEST[1:]],
)
def test_what_is_no_client_gets_silence(packet: bytes) -> None:
    assert answer(packet, NOW_NS, NOW_NS) is None


def test_extensions_are_not_answered_with_more_than_asked() -> None:
    reply = answer(REQUEST + bytes(100), NOW_NS, NOW_NS)
    assert reply is not None
    assert len(reply) == 48


def test_the_kernels_time_of_arrival_is_read() -> None:
    stamp = struct.pack("qq", 5, 7)
    assert received_ns([(socket.SOL_SOCKET, 35, stamp)]) == 5_000_000_007
    assert received_ns([(socket.SOL_SOCKET, 1, stamp), (socket.SOL_SOCKET, 35, b"short")]) is None
