"""Credentials, and how an answer becomes an error the user can act on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from wrenn_sandbox.cli import api
from wrenn_sandbox.cli.api import Credentials, items_of
from wrenn_sandbox.core.errors import Bug, Exhausted, Invalid, NotFound, Unauthenticated, WrennError


class _Response:
    def __init__(self, status: int, body: object) -> None:
        self.status = status
        self._body = body

    async def json(self) -> object:
        if isinstance(self._body, Exception):
            raise self._body
        return self._body


def _error(status: int, body: object) -> WrennError:
    return asyncio.run(api._error_of(_Response(status, body)))


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRENN_BASE_URL", "http://there:1/")
    monkeypatch.setenv("WRENN_API_KEY", "wrn_1")
    assert Credentials.find() == Credentials("http://there:1", "wrn_1")


def test_the_key_file_of_this_machine_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WRENN_BASE_URL", raising=False)
    monkeypatch.delenv("WRENN_API_KEY", raising=False)
    monkeypatch.setattr(api, "DEFAULT_KEY_FILE", tmp_path / "api.key")
    with pytest.raises(Unauthenticated, match="WRENN_API_KEY"):
        Credentials.find()
    (tmp_path / "api.key").write_text("wrn_2\n")
    assert Credentials.find() == Credentials(api.DEFAULT_URL, "wrn_2")


def test_the_key_is_in_no_repr() -> None:
    assert "wrn_secret" not in repr(Credentials("u", "wrn_secret"))


@pytest.mark.parametrize(
    ("status", "cls"), [(404, NotFound), (400, Invalid), (422, Invalid), (503, Exhausted), (500, Bug), (502, Bug)]
)
def test_status_decides_the_class_and_the_body_the_words(status: int, cls: type[WrennError]) -> None:
    error = _error(status, {"error": {"code": "a_slug", "message": "do this"}})
    assert type(error) is cls
    assert (error.slug, error.message) == ("a_slug", "do this")


@pytest.mark.parametrize("body", [ValueError("no json"), {}, {"error": "text"}, [], None])
def test_a_foreign_body_is_no_crash(body: object) -> None:
    assert "404" in _error(404, body).message


def test_a_list_lists_objects() -> None:
    assert items_of({"items": [{"id": 1}, "x"]}) == [{"id": 1}]
    assert items_of({}) == items_of({"items": "x"}) == []
