from __future__ import annotations

import pytest

from wrenn_sandbox.core.errors import Invalid, Unauthenticated
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.rights import FileThreads

ACCESS = FileAccess(GuestContext(default_user="root"), FileThreads(1))


def test_user_of_a_query() -> None:
    assert ACCESS.user({}).name == "root"
    assert ACCESS.user({"username": ""}).uid == 0
    with pytest.raises(Unauthenticated) as caught:
        ACCESS.user({"username": "no-such-user"})
    assert caught.value.slug == "invalid_username"


def test_path_of_a_user() -> None:
    root = ACCESS.user({"username": "root"})
    assert ACCESS.path("a/../b", root) == root.home.rstrip("/") + "/b"
    assert ACCESS.path("/../x", root) == "/x"
    for bad in ("/a\0b", "~other/x"):
        with pytest.raises(Invalid) as caught:
            ACCESS.path(bad, root)
        assert caught.value.slug == "invalid_path"
