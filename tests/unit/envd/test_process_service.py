"""What a request means, before any process is involved. The rest: tests/platform/envd."""

from __future__ import annotations

from pathlib import Path

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import Headers
from protobuf import Oneof

from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.process_service import ProcessService, keepalive_s, workdir
from wrenn_sandbox.envd.processes import ProcessTable, Program
from wrenn_sandbox.envd.pty import Size
from wrenn_sandbox.envd.users import User
from wrenn_sandbox.rpc.gen.envd import process_pb as wire

USER = User("root", 0, 0, (0,), "/", "/bin/sh")


@pytest.fixture
def service() -> ProcessService:
    context = GuestContext(default_user="root", default_workdir="/", envs={"A": "init"})
    return ProcessService(context, ProcessTable(context))


def program(service: ProcessService, request: wire.StartRequest) -> Program:
    return service._program(request, request.process or wire.ProcessConfig(), Headers({}))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({}, 90),
        ({"keepalive-ping-interval": "50"}, 50),
        *(({"keepalive-ping-interval": t}, 90) for t in ("0", "-1", "x", "1.5", "")),
    ],
)
def test_keepalive(header: dict[str, str], expected: float) -> None:
    assert keepalive_s(Headers(header)) == expected


def test_workdir(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert workdir(str(tmp_path), USER, "") == str(tmp_path)
    assert workdir("", USER, str(tmp_path)) == str(tmp_path)
    for bad in (tmp_path / "none", tmp_path / "file", tmp_path / "file" / "below", "x" * 5000):
        with pytest.raises(ConnectError) as caught:
            workdir(str(bad), USER, "")
        assert caught.value.code == Code.INVALID_ARGUMENT


def test_what_a_request_starts(service: ProcessService) -> None:
    config = wire.ProcessConfig(cmd="ls", args=["-l", "ü"], envs={"B": "2"}, cwd="/tmp")
    made = program(service, wire.StartRequest(process=config))
    assert made.command == (b"ls", b"-l", "ü".encode())
    assert (made.environment[b"A"], made.environment[b"B"]) == (b"init", b"2")
    assert (made.workdir, made.terminal, made.stdin, made.tag) == ("/tmp", None, True, None)
    made = program(service, wire.StartRequest(process=config, stdin=False, tag="", pty=wire.PTY()))
    assert (made.stdin, made.tag, made.terminal) == (False, "", Size(80, 24))


@pytest.mark.parametrize(
    "config", [wire.ProcessConfig(), wire.ProcessConfig(cmd="a\0b"), wire.ProcessConfig(cmd="x", args=["\0"])]
)
def test_what_cannot_be_started(service: ProcessService, config: wire.ProcessConfig) -> None:
    with pytest.raises(ConnectError) as caught:
        program(service, wire.StartRequest(process=config))
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("selector", "code"),
    [
        (None, Code.INVALID_ARGUMENT),
        (wire.ProcessSelector(), Code.INVALID_ARGUMENT),
        (wire.ProcessSelector(selector=Oneof("pid", 7)), Code.NOT_FOUND),
        (wire.ProcessSelector(selector=Oneof("tag", "x")), Code.NOT_FOUND),
    ],
)
def test_selectors_that_name_nothing(
    service: ProcessService, selector: wire.ProcessSelector | None, code: Code
) -> None:
    with pytest.raises(ConnectError) as caught:
        service._find(selector)
    assert caught.value.code == code
