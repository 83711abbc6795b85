"""Secrets never reach a log, and a log that cannot be written is nobody's failure."""

from __future__ import annotations

import errno
import io
import json
import sys

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


class _Full(io.StringIO):
    """A log on a disk without room."""

    room = False

    def write(self, text: str) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_line_that_cannot_be_written_is_lost_and_the_next_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    full = _Full()
    monkeypatch.setattr(sys, "stderr", full)
    configure("agent", as_json=True)
    try:
        structlog.get_logger().error("lost")
        full.room = True
        structlog.get_logger().error("written")
    finally:
        structlog.reset_defaults()
    assert [json.loads(line)["event"] for line in full.getvalue().splitlines()] == ["written"]
