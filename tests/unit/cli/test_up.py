"""How the two processes are started, and what is said of a failure."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from wrenn_sandbox.cli import up
from wrenn_sandbox.cli.api import Credentials
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


def test_a_password_in_the_databases_url_is_in_no_process_title(tmp_path: Path) -> None:
    options = replace(_options(tmp_path), database_url="postgresql://wrenn:hunter2@db/wrenn")
    plane = up._control_plane(options, "http://127.0.0.1:1")
    assert "hunter2" not in " ".join(plane.arguments)
    assert "hunter2" not in repr(plane)
    assert "hunter2" not in repr(options)
    assert plane.environment == {"WRENN_DATABASE_URL": options.database_url}


def test_the_ready_file_is_its_owners_alone_whatever_lay_there(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    for left in (ready, tmp_path / "ready.json.new"):
        left.touch()
        left.chmod(0o644)
    umask = os.umask(0)
    try:
        up._announce(replace(_options(tmp_path), ready_file=ready), Credentials("http://127.0.0.1:1", "wrn_x"), "fake")
    finally:
        os.umask(umask)
    assert json.loads(ready.read_text())["api_key"] == "wrn_x"
    assert stat.S_IMODE(ready.stat().st_mode) == 0o600
    assert not (tmp_path / "ready.json.new").exists()


def test_secrets_are_kept(tmp_path: Path) -> None:
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
