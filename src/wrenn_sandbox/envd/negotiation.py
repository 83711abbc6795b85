"""What a GET of a file gets back, decided from its headers alone (RFC 9110, sections 12.5.3, 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

_RANGE = re.compile(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII)


class Outcome(Enum):
    """The status of the answer."""

    WHOLE = 200
    PART = 206
    NOT_MODIFIED = 304
    NOT_ACCEPTABLE = 406
    PRECONDITION_FAILED = 412
    UNSATISFIABLE = 416


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send: ``length`` bytes from ``start``, compressed or not."""

    outcome: Outcome
    start: int = 0
    length: int = 0
    gzip: bool = False


@dataclass(frozen=True, slots=True)
class Version:
    """What the file is now. ``etag`` includes its quotes; ``modified_s`` is unix time."""

    size: int
    etag: str
    modified_s: float


def plan(header: Callable[[bytes], bytes], version: Version) -> Plan:
    """Decide; ``header`` gives a request header by lower-case name, empty when absent."""

    def text(name: bytes) -> str:
        return header(name).decode("latin-1")

    condition = _condition(text, version)
    if condition is not None:
        return Plan(condition)
    gzip, identity = codings(text(b"accept-encoding"))
    wanted = text(b"range")
    if wanted and version.size and _range_applies(text(b"if-range"), version):
        span = byte_range(wanted, version.size)
        if span is not None:
            if not identity:
                return Plan(Outcome.NOT_ACCEPTABLE)
            start, length = span
            return Plan(Outcome.PART, start, length) if length else Plan(Outcome.UNSATISFIABLE)
    if not (gzip or identity):
        return Plan(Outcome.NOT_ACCEPTABLE)
    compress = gzip >= identity and (version.size > 0 or not identity)
    return Plan(Outcome.WHOLE, 0, version.size, gzip=compress)


def codings(accept: str) -> tuple[float, float]:
    """The weights of gzip and identity in an Accept-Encoding header; 0 means refused.

    Identity that is not named weighs as little as possible without being refused.
    """
    weights: dict[str, float] = {}
    for item in accept.split(","):
        name, _, parameters = item.partition(";")
        key, _, value = parameters.partition("=")
        weights[name.strip().lower()] = _weight(value) if key.strip().lower() == "q" else 1.0
    anything = weights.get("*")
    gzip = weights.get("gzip", weights.get("x-gzip", anything or 0.0))
    identity = weights.get("identity", 0.0 if anything == 0.0 else 0.0001)
    return gzip, identity


def byte_range(text: str, size: int) -> tuple[int, int] | None:
    """Start and length of a single byte range; length 0 when outside the file, None when it is to be ignored."""
    match = _RANGE.fullmatch(text.strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        length = min(int(match[2]), size)
        return size - length, length
    start = int(match[1])
    end = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < start:
        return None
    return start, max(0, end - start + 1)


def _condition(text: Callable[[bytes], str], version: Version) -> Outcome | None:
    """Preconditions in the order of RFC 9110, section 13.2.2."""
    if match := text(b"if-match"):
        if not _names(match, version.etag, weak=False):
            return Outcome.PRECONDITION_FAILED
    elif (moment := _date(text(b"if-unmodified-since"))) is not None and int(version.modified_s) > moment:
        return Outcome.PRECONDITION_FAILED
    if none := text(b"if-none-match"):
        if _names(none, version.etag, weak=True):
            return Outcome.NOT_MODIFIED
    elif (moment := _date(text(b"if-modified-since"))) is not None and int(version.modified_s) <= moment:
        return Outcome.NOT_MODIFIED
    return None


def _range_applies(if_range: str, version: Version) -> bool:
    if not if_range:
        return True
    if if_range.startswith(('"', "W/")):
        return if_range == version.etag
    return _date(if_range) == int(version.modified_s)


def _names(header: str, etag: str, *, weak: bool) -> bool:
    tags = [tag.strip() for tag in header.split(",")]
    if weak:
        tags = [tag.removeprefix("W/") for tag in tags]
    return "*" in tags or etag in tags


def _date(text: str) -> int | None:
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def http_date(seconds: float) -> str:
    """Unix time as an HTTP date."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def _weight(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
