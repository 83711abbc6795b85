"""How the shim is called. What it does: tests/platform/envd."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.envd import shim
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.shim import Launch, shim_arguments, shim_path, spawn_error
from wrenn_sandbox.envd.users import User

USER = User("user", 1000, 1001, (1001, 27), "/home/user", "/bin/bash")


def launch(*, terminal: bool = False, cgroup: Path | None = None) -> Launch:
    return Launch((b"ls", b"-l"), {}, USER, "/home/user", (0, 1, 2), terminal, cgroup)


def test_in_a_guest_all_is_asked_for() -> None:
    asked = launch(terminal=True, cgroup=Path("/cg/ptys/cgroup.procs"))
    assert b" ".join(shim_arguments(asked, is_guest=True, uid=0)) == (
        b"exec-shim -d /home/user -u 1000 -g 1001 -G 1001,27 -o 100 -n 0 -f 1024 -c /cg/ptys/cgroup.procs -t -- ls -l"
    )


def test_without_root_only_what_needs_none() -> None:
    assert b" ".join(shim_arguments(launch(), is_guest=False, uid=1000)) == b"exec-shim -d /home/user -- ls -l"


def test_without_root_nobody_else_can_be_become() -> None:
    with pytest.raises(ConnectError) as caught:
        shim_arguments(launch(), is_guest=False, uid=1)
    assert caught.value.code == Code.PERMISSION_DENIED


def test_where_the_shim_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shim_path(GuestContext(tools_dir=Path("/tools"))) == Path("/tools/bin/exec-shim")
    monkeypatch.setenv(shim.SHIM_VARIABLE, "/elsewhere/shim")
    assert shim_path(GuestContext()) == Path("/elsewhere/shim")
    monkeypatch.delenv(shim.SHIM_VARIABLE)
    with pytest.raises(ConnectError, match=shim.SHIM_VARIABLE):
        shim_path(GuestContext())


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.E2BIG, Code.INVALID_ARGUMENT),
        (errno.EAGAIN, Code.RESOURCE_EXHAUSTED),
        (errno.EMFILE, Code.RESOURCE_EXHAUSTED),
        (errno.ENOENT, Code.INTERNAL),
    ],
)
def test_refusals_of_the_kernel(number: int, code: Code) -> None:
    assert spawn_error(OSError(number, "why")).code == code
