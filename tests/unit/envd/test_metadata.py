from __future__ import annotations

import errno
import os

import pytest

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.envd import metadata


def test_headers() -> None:
    headers = [(b"x-metadata-Author", b"me"), (b"x-meta", b"no"), (b"x-metadata-k-2", b"a b~")]
    assert metadata.from_headers(headers) == {"author": "me", "k-2": "a b~"}


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"", b"x"), (b"k" * 247, b""), (b"k", b"v" * 4096), (b"k", b"\xc3\xa9"), (b"k", b"a\tb")],
)
def test_limits(key: bytes, value: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        metadata.from_headers([(b"x-metadata-" + key, value)])
    assert caught.value.slug == "invalid_metadata"


def test_limits_are_inclusive() -> None:
    metadata.from_headers([(b"x-metadata-" + b"k" * 246, b"v" * (4096 - 246))])
    with pytest.raises(Invalid):
        metadata.from_headers([(b"x-metadata-a", b"v" * 2048), (b"x-metadata-b", b"v" * 2047)])


@pytest.fixture
def attributes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The extended attributes of the one file there is."""
    kept = {"user.other": b"x", "user.e2b.old": b"1", "user.e2b.both": b"2"}
    monkeypatch.setattr(os, "listxattr", lambda _: list(kept))
    monkeypatch.setattr(os, "getxattr", lambda _, name: kept[name])
    monkeypatch.setattr(os, "setxattr", lambda _, name, value: kept.__setitem__(name, value))
    monkeypatch.setattr(os, "removexattr", lambda _, name: kept.pop(name))
    return kept


def test_an_upload_replaces_the_whole_set(attributes: dict[str, bytes]) -> None:
    assert metadata.read(3) == {"old": "1", "both": "2"}
    metadata.replace(3, {"both": "3", "new": "4"}, fresh=False)
    assert metadata.read(3) == {"both": "3", "new": "4"}
    assert attributes["user.other"] == b"x"
    metadata.replace(3, {}, fresh=False)
    assert attributes == {"user.other": b"x"}


def test_a_file_system_without_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "listxattr", refuse)
    monkeypatch.setattr(os, "setxattr", refuse)
    assert metadata.read(3) == {}
    metadata.replace(3, {}, fresh=False)
    with pytest.raises(Invalid) as caught:
        metadata.replace(3, {"k": "v"}, fresh=True)
    assert caught.value.slug == "metadata_unsupported"
