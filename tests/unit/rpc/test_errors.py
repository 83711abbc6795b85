"""An error crosses the wire without losing its class, slug or delay."""

from __future__ import annotations

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.core import errors
from wrenn_sandbox.rpc.errors import from_connect, to_connect


@pytest.mark.parametrize("cls", list(errors.CONNECT_CODE))
def test_round_trip(cls: type[errors.WrennError]) -> None:
    back = from_connect(to_connect(cls("do this", slug="a_slug", retry_after_s=7)))
    assert type(back) is cls
    assert (back.message, back.slug, back.retry_after_s) == ("do this", "a_slug", 7)


@pytest.mark.parametrize("code", list(Code))
def test_every_code_of_a_foreign_peer_has_a_class(code: Code) -> None:
    back = from_connect(ConnectError(code, "words"))
    assert isinstance(back, errors.WrennError)
    assert back.slug == type(back).default_slug
