from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner

from tests.unit.cli.test_sandbox import _Api
from wrenn_sandbox.cli import snapshot


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    def install(*answers: object) -> _Api:
        api = _Api(*answers)
        monkeypatch.setattr(snapshot, "_run", lambda use: asyncio.run(use(api)))
        return api

    return install


def test_create_prints_the_name(scripted) -> None:
    api = scripted({"name": "template-1"}, {"name": "n"})
    assert CliRunner().invoke(snapshot.app, ["create", "sb-1"]).stdout == "template-1\n"
    flags = ["--name", "n", "--overwrite", "--leave-paused", "--json"]
    assert CliRunner().invoke(snapshot.app, ["create", "sb-1", *flags]).stdout == '{"name": "n"}\n'
    assert api.calls == [
        ("POST", "/v1/snapshots", {"sandbox_id": "sb-1", "leave_paused": False}),
        ("POST", "/v1/snapshots?overwrite=true", {"sandbox_id": "sb-1", "leave_paused": True, "name": "n"}),
    ]


def test_list_shows_a_table_or_the_answer(scripted) -> None:
    items = [{"name": "n", "type": "snapshot", "vcpus": 1, "memory_mb": 512, "size_bytes": 7, "created_at": "now"}]
    api = scripted({"items": items}, {"items": items})
    lines = CliRunner().invoke(snapshot.app, ["list", "--type", "snapshot"]).stdout.splitlines()
    assert lines[1].split() == ["n", "snapshot", "1", "512", "7", "now"]
    assert json.loads(CliRunner().invoke(snapshot.app, ["list", "--json"]).stdout) == items
    assert [call[1] for call in api.calls] == ["/v1/snapshots?type=snapshot", "/v1/snapshots"]


def test_delete_names_each(scripted) -> None:
    api = scripted({}, {})
    assert CliRunner().invoke(snapshot.app, ["delete", "a", "b/c", "--json"]).stdout == '{"deleted": ["a", "b/c"]}\n'
    assert [call[1] for call in api.calls] == ["/v1/snapshots/a", "/v1/snapshots/b%2Fc"]
