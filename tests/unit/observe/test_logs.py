"""Secrets never reach a log."""

from __future__ import annotations

import json

import pytest
import structlog

from wrenn_sandbox.observe.logs import configure, without_secrets


def test_keys_that_name_a_secret_are_blanked() -> None:
    event = without_secrets(None, "info", {"access_token": "x", "X-Api_Key": "y", "Authorization": "z", "id": 1})
    assert event == {"access_token": "***", "X-Api_Key": "***", "Authorization": "***", "id": 1}


def test_a_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure("agent", as_json=True)
    try:
        structlog.get_logger().info("made", sandbox="sb-1", access_token="x")
        line = json.loads(capsys.readouterr().err)
    finally:
        structlog.reset_defaults()
    assert (line["event"], line["process"], line["access_token"]) == ("made", "agent", "***")
