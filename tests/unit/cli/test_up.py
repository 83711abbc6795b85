"""How the two processes are started, and what is said of a failure."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from wrenn_sandbox.cli import up
from wrenn_sandbox.core.errors import Conflict, Unavailable


def _options(data_dir: Path) -> up.Options:
    (data_dir / "run").mkdir(parents=True, exist_ok=True)
    return up.Options(
        data_dir, data_dir / "images", "127.0.0.1:0", "fake", "sbx.test", "t", "sqlite://", None, hello=False
    )


def test_both_processes_share_the_token_and_nothing_else(tmp_path: Path) -> None:
    options = _options(tmp_path)
    agent, plane = up._host_agent(options), up._control_plane(options, "http://127.0.0.1:1")
    token = str(tmp_path / "agent.token")
    assert token in agent.arguments
    assert token in plane.arguments
    assert agent.ready_file != plane.ready_file
    assert "http://127.0.0.1:1" in plane.arguments
    assert stat.S_IMODE(Path(token).stat().st_mode) == 0o600


def test_secrets_and_port_are_kept(tmp_path: Path) -> None:
    options = _options(tmp_path)
    assert up._host_agent(options) == up._host_agent(options)


def test_one_platform_a_data_directory(tmp_path: Path) -> None:
    with up._sole_user_of(tmp_path), pytest.raises(Conflict) as caught, up._sole_user_of(tmp_path):
        pass
    assert caught.value.slug == "data_dir_in_use"


def test_the_typed_error_is_the_one_told() -> None:
    cause = Unavailable("the reason")
    group = BaseExceptionGroup("", [ValueError("noise"), BaseExceptionGroup("", [cause])])
    assert up._first_cause(group) is cause
    assert isinstance(up._first_cause(BaseExceptionGroup("", [KeyError("x")])), KeyError)
