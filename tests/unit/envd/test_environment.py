"""The environment of a program."""

from __future__ import annotations

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.envd.environment import DEFAULT_PATH, argument, environment
from wrenn_sandbox.envd.users import User

USER = User("user", 1000, 1000, (1000,), "/home/user", "/bin/zsh")


def test_nothing_but_the_account_the_guest_and_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_ENVD", "secret")
    assert environment(USER, {"G": "guest"}, {"R": "ü"}) == {
        b"PATH": DEFAULT_PATH.encode(),
        b"HOME": b"/home/user",
        b"USER": b"user",
        b"LOGNAME": b"user",
        b"SHELL": b"/bin/zsh",
        b"G": b"guest",
        b"R": "ü".encode(),
    }


def test_later_ones_win() -> None:
    built = environment(USER, {"HOME": "/guest", "A": "guest"}, {"A": "request", "PATH": ""})
    assert (built[b"HOME"], built[b"A"], built[b"PATH"]) == (b"/guest", b"request", b"")


def test_local_programs_are_found() -> None:
    assert "/usr/local/bin" in DEFAULT_PATH.split(":")


@pytest.mark.parametrize("name", ["", "A=B", "=", "A\0", "\ud800"])
def test_impossible_names(name: str) -> None:
    with pytest.raises(ConnectError) as caught:
        environment(USER, {}, {name: "x"})
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("text", ["a\0b", "\udfff"])
def test_impossible_arguments(text: str) -> None:
    with pytest.raises(ConnectError, match="the thing") as caught:
        argument(text, "the thing")
    assert caught.value.code == Code.INVALID_ARGUMENT
