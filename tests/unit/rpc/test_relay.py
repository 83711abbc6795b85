from __future__ import annotations

import pytest
from yarl import URL

from wrenn_sandbox.rpc import relay


def scope(*headers: tuple[str, str]) -> relay.Scope:
    return {"type": "http", "headers": [(n.encode(), v.encode()) for n, v in headers]}


def test_hop_by_hop_headers_and_those_named_by_connection_stay_behind() -> None:
    asked = scope(
        ("Connection", "close, X-Mine"), ("X-Mine", "1"), ("Upgrade", "h2c"), ("Accept", "a"), ("accept", "b")
    )
    sent = relay._request_headers(asked, (), ())
    assert list(sent.items()) == [("Accept", "a"), ("accept", "b")]


def test_a_client_cannot_have_its_own_framing_taken_away() -> None:
    asked = scope(("Connection", "Host, content-length"), ("Host", "a"), ("Content-Length", "3"))
    assert list(relay._request_headers(asked, (), ()).items()) == [("Host", "a"), ("Content-Length", "3")]


def test_a_client_cannot_have_our_own_headers_taken_away() -> None:
    asked = scope(("Connection", "authorization"), ("Authorization", "theirs"))
    sent = relay._request_headers(asked, {"authorization"}, [("Authorization", "ours")])
    assert list(sent.items()) == [("Authorization", "ours")]


@pytest.mark.parametrize(
    ("path", "query", "target"),
    [
        (b"/a%20b//c", b"", "/a%20b//c"),
        (b"/../x/%2e%2e", b"q=%zz&[a]={1}|2", "/../x/%2e%2e?q=%zz&[a]={1}|2"),
        (b"/", b"q=\xc3\xa9\xff", "/?q=%C3%A9%FF"),
        (b"/a b", b"\r\n", "/a%20b?%0D%0A"),
    ],
)
def test_targets_pass_as_they_came(path: bytes, query: bytes, target: str) -> None:
    assert relay.as_target(path, query) == target
    assert str(URL("http://h" + target, encoded=True)) == "http://h" + target  # nobody resolves dots on the way


def test_dropped_and_extra_headers() -> None:
    asked = scope(("Authorization", "Bearer secret"), ("Host", "a"))
    sent = relay._request_headers(asked, {"authorization"}, [("host", "b"), ("X-New", "1")])
    assert sent.getall("Host") == ["b"] and sent["X-New"] == "1" and "Authorization" not in sent


@pytest.mark.parametrize(
    ("code", "sent"), [(None, 1000), (1005, 1000), (1006, 1011), (1000, 1000), (4001, 4001), (7, 1011)]
)
def test_close_codes_that_must_not_be_framed(code: int | None, sent: int) -> None:
    assert relay._sendable(code) == sent


def test_large_chunks_are_cut_to_the_bound() -> None:
    pieces = list(relay._pieces(bytes(relay.CHUNK_BYTES * 2 + 1)))
    assert [len(p) for p in pieces] == [relay.CHUNK_BYTES, relay.CHUNK_BYTES, 1]
