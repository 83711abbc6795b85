from __future__ import annotations

import pytest

from wrenn_sandbox.envd.negotiation import Outcome, Plan, Version, byte_range, codings, http_date, plan

VERSION = Version(size=100, etag='"v1"', modified_s=1_700_000_000.9)
MODIFIED = "Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"


def decide(version: Version = VERSION, **headers: str) -> Plan:
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return plan(lambda name: fields.get(name, b""), version)


def test_plain() -> None:
    assert decide() == Plan(Outcome.WHOLE, 0, 100, gzip=False)


@pytest.mark.parametrize(
    ("accept", "gzip"),
    [
        ("gzip", True),
        ("gzip, deflate, br", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("*", True),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("identity, gzip;q=0.5", False),
        ("gzip;q=nonsense", False),
        ("identity;q=0, gzip", True),
    ],
)
def test_compression(accept: str, gzip: bool) -> None:
    assert decide(accept_encoding=accept) == Plan(Outcome.WHOLE, 0, 100, gzip=gzip)


@pytest.mark.parametrize("accept", ["identity;q=0", "*;q=0", "identity;q=0, br", "gzip;q=0, identity;q=0"])
def test_nothing_acceptable(accept: str) -> None:
    assert decide(accept_encoding=accept).outcome is Outcome.NOT_ACCEPTABLE


def test_a_named_identity_survives_a_refused_star() -> None:
    assert codings("identity, *;q=0") == (0.0, 1.0)


def test_an_empty_file_is_not_compressed_unless_it_must() -> None:
    empty = Version(0, '"e"', 0.0)
    assert decide(empty, accept_encoding="gzip") == Plan(Outcome.WHOLE, 0, 0, gzip=False)
    assert decide(empty, accept_encoding="gzip, identity;q=0").gzip


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-19", (10, 10)),
        ("bytes=90-", (90, 10)),
        ("bytes=90-1000", (90, 10)),
        ("bytes=-10", (90, 10)),
        ("bytes=-1000", (0, 100)),
        ("bytes = 1 - 2", (1, 2)),
        ("bytes=100-", (100, 0)),
        ("bytes=-0", (100, 0)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0-1,5-6", None),
        ("lines=0-1", None),
    ],
)
def test_ranges(text: str, span: tuple[int, int] | None) -> None:
    assert byte_range(text, 100) == span


def test_range_answers() -> None:
    assert decide(range="bytes=10-19") == Plan(Outcome.PART, 10, 10)
    assert decide(range="bytes=10-19", accept_encoding="gzip") == Plan(Outcome.PART, 10, 10)
    assert decide(range="bytes=100-").outcome is Outcome.UNSATISFIABLE
    assert decide(range="bytes=0-1,5-6") == Plan(Outcome.WHOLE, 0, 100)
    assert decide(range="bytes=0-1", accept_encoding="gzip, identity;q=0").outcome is Outcome.NOT_ACCEPTABLE
    assert decide(Version(0, '"e"', 0.0), range="bytes=0-1").outcome is Outcome.WHOLE


def test_if_range() -> None:
    assert decide(range="bytes=1-2", if_range='"v1"').outcome is Outcome.PART
    assert decide(range="bytes=1-2", if_range='"v2"').outcome is Outcome.WHOLE
    assert decide(range="bytes=1-2", if_range='W/"v1"').outcome is Outcome.WHOLE
    assert decide(range="bytes=1-2", if_range=MODIFIED).outcome is Outcome.PART
    assert decide(range="bytes=1-2", if_range=EARLIER).outcome is Outcome.WHOLE


def test_conditions() -> None:
    assert decide(if_none_match='"v1"').outcome is Outcome.NOT_MODIFIED
    assert decide(if_none_match='"v0", W/"v1"').outcome is Outcome.NOT_MODIFIED
    assert decide(if_none_match="*").outcome is Outcome.NOT_MODIFIED
    assert decide(if_none_match='"v2"').outcome is Outcome.WHOLE
    assert decide(if_modified_since=MODIFIED).outcome is Outcome.NOT_MODIFIED
    assert decide(if_modified_since=EARLIER).outcome is Outcome.WHOLE
    assert decide(if_modified_since="yesterday").outcome is Outcome.WHOLE
    assert decide(if_none_match='"v2"', if_modified_since=MODIFIED).outcome is Outcome.WHOLE
    assert decide(if_match='"v1"').outcome is Outcome.WHOLE
    assert decide(if_match='"v2"').outcome is Outcome.PRECONDITION_FAILED
    assert decide(if_match='W/"v1"').outcome is Outcome.PRECONDITION_FAILED
    assert decide(if_unmodified_since=MODIFIED).outcome is Outcome.WHOLE
    assert decide(if_unmodified_since=EARLIER).outcome is Outcome.PRECONDITION_FAILED


def test_http_date() -> None:
    assert http_date(1_700_000_000.9) == MODIFIED
