from __future__ import annotations

import pytest

from wrenn_sandbox.controlplane.http.v1.commands import MAX_STDIN_BYTES, _texts, command_of
from wrenn_sandbox.controlplane.http.v1.models import Exec
from wrenn_sandbox.controlplane.usecases.run_command import Outcome
from wrenn_sandbox.core.errors import Invalid, TooLarge


def outcome(stdout: bytes, stderr: bytes) -> Outcome:
    return Outcome(stdout, stderr, 0, "", False)


def test_both_streams_are_base64_when_one_is_no_text() -> None:
    assert _texts(outcome("ü".encode(), b"")) == ("ü", "", "utf-8")
    assert _texts(outcome(b"a", b"\xff")) == ("YQ==", "/w==", "base64")


def test_a_command_is_taken_over_whole() -> None:
    body = Exec(cmd="c", args=["a"], envs={"A": "1"}, cwd="/", user="u", timeout_sec=9, stdin="i")
    command = command_of(body)
    assert (command.cmd, command.args, command.envs) == ("c", ("a",), {"A": "1"})
    assert (command.cwd, command.user, command.timeout_s, command.stdin) == ("/", "u", 9, b"i")


def test_standard_input_has_a_limit_and_a_form() -> None:
    with pytest.raises(TooLarge):
        command_of(Exec(cmd="c", stdin="x" * (MAX_STDIN_BYTES + 1)))
    with pytest.raises(Invalid, match="stdin"):
        command_of(Exec(cmd="c", stdin="%", stdin_encoding="base64"))
