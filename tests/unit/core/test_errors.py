"""Each class says what the caller can do, to HTTP and to Connect alike."""

from __future__ import annotations

import pytest

from wrenn_sandbox.core import errors
from wrenn_sandbox.core.errors import WrennError, connect_code, http_status


def _all_classes() -> list[type[WrennError]]:
    return [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, WrennError) and c is not WrennError
    ]


@pytest.mark.parametrize("cls", _all_classes())
def test_every_class_has_a_status_and_a_code(cls: type[WrennError]) -> None:
    error = cls("what to do")
    assert 400 <= http_status(error) < 600
    assert connect_code(error)
    assert error.slug == cls.default_slug
    assert str(error) == "what to do"


def test_only_a_bug_is_a_500() -> None:
    assert [c for c in _all_classes() if http_status(c("x")) == 500] == [errors.Bug]


def test_a_subclass_without_an_entry_takes_its_parents() -> None:
    class Special(errors.NotFound):
        pass

    assert http_status(Special("x")) == 404
    assert connect_code(Special("x")) == "not_found"


def test_connect_codes_name_one_class_each() -> None:
    codes = [c for cls, c in errors.CONNECT_CODE.items()]
    assert len(codes) == len(set(codes))


def test_slug_and_delay_are_the_raisers() -> None:
    error = errors.Exhausted("later", slug="host_full", retry_after_s=5)
    assert (error.slug, error.retry_after_s) == ("host_full", 5)
