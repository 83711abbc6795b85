"""What the commands make of their arguments."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wrenn_sandbox.cli import sandbox
from wrenn_sandbox.core.errors import Invalid


class _Api:
    """Answers from a script and remembers what was asked."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[object, ...]] = []

    async def call(self, *arguments: object, timeout_s: float = 0) -> object:
        self.calls.append(arguments)
        return self.answers.pop(0)

    async def download(self, path: str):
        self.calls.append(("GET", path))
        for chunk in (b"one", b"two"):
            yield chunk
        if self.answers:
            raise self.answers.pop(0)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    def install(*answers: object) -> _Api:
        api = _Api(*answers)
        monkeypatch.setattr(sandbox, "_run", lambda use: asyncio.run(use(api)))
        return api

    return install


def test_create_prints_the_id(scripted) -> None:
    api = scripted({"id": "sb-1"})
    done = CliRunner().invoke(sandbox.app, ["create", "--memory", "1024", "--env", "A=1=2"])
    assert done.stdout == "sb-1\n"
    _, path, body = api.calls[0]
    assert path == "/v1/sandboxes"
    assert body["memory_mb"] == 1024
    assert body["envs"] == {"A": "1=2"}


def test_exec_passes_output_and_exit_code_on(scripted) -> None:
    api = scripted({"stdout": "out", "stderr": "err", "exit_code": 3, "encoding": "utf-8"})
    done = CliRunner().invoke(sandbox.app, ["exec", "sb-1", "ls", "-l", "--json"])
    assert (done.stdout, done.stderr, done.exit_code) == ("out", "err", 3)
    assert api.calls[0][2]["args"] == ["-l", "--json"], "what follows the command belongs to it"


def test_exec_decodes_bytes(scripted) -> None:
    scripted({"stdout": "/w==", "stderr": "", "exit_code": 0, "encoding": "base64"})
    assert CliRunner().invoke(sandbox.app, ["exec", "sb-1", "cat"]).stdout_bytes == b"\xff"


def test_list_follows_the_cursor(scripted) -> None:
    scripted({"items": [{"id": "a"}], "next_cursor": "x/y"}, {"items": [{"id": "b"}]})
    assert CliRunner().invoke(sandbox.app, ["list", "--json"]).stdout == '[{"id": "a"}, {"id": "b"}]\n'


def test_a_broken_download_leaves_no_file(scripted, tmp_path: Path) -> None:
    scripted(OSError("gone"))
    target = tmp_path / "file"
    done = CliRunner().invoke(sandbox.app, ["cp", "sb-1:/etc/x", str(target)])
    assert done.exit_code != 0
    assert list(tmp_path.iterdir()) == []


def test_a_download_lands_under_its_name(scripted, tmp_path: Path) -> None:
    scripted()
    CliRunner().invoke(sandbox.app, ["cp", "sb-1:/etc/x y", str(tmp_path)])
    assert (tmp_path / "x y").read_bytes() == b"onetwo"


@pytest.mark.parametrize(
    ("text", "split"),
    [("sb-1:/a", ("sb-1", "/a")), ("cl-1:a", ("cl-1", "a")), ("/a:b", ("", "/a:b")), ("a", ("", "a"))],
)
def test_which_side_is_the_sandbox(text: str, split: tuple[str, str]) -> None:
    assert sandbox._split(text) == split


def test_copying_needs_one_side_in_a_sandbox(scripted) -> None:
    scripted()
    for sides in (["a", "b"], ["sb-1:a", "sb-2:b"]):
        assert isinstance(CliRunner().invoke(sandbox.app, ["cp", *sides]).exception, Invalid)


@pytest.mark.parametrize("item", ["novalue", "=x", ""])
def test_pairs_are_checked(item: str) -> None:
    with pytest.raises(Invalid):
        sandbox._pairs([item])


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["pause", "sb-1"], "pause", None),
        (["resume", "sb-1"], "resume", None),
        (["resume", "sb-1", "--timeout", "0"], "resume", {"timeout_sec": 0}),
        (["rollback", "sb-1", "before"], "rollback", {"snapshot": "before"}),
    ],
)
def test_a_change_prints_what_it_is_then(scripted, arguments: list[str], path: str, body: object) -> None:
    api = scripted({"status": "paused", "id": "sb-1"}, {"status": "paused", "id": "sb-1"})
    assert CliRunner().invoke(sandbox.app, arguments).stdout == "paused\n"
    assert CliRunner().invoke(sandbox.app, [*arguments, "--json"]).stdout == '{"status": "paused", "id": "sb-1"}\n'
    assert api.calls == [("POST", f"/v1/sandboxes/sb-1/{path}", body)] * 2


def test_fork_prints_the_ids_of_the_children(scripted) -> None:
    answer = {"items": [{"id": "sb-2"}, {"id": "sb-3"}]}
    api = scripted(answer, answer)
    assert CliRunner().invoke(sandbox.app, ["fork", "sb-1", "--count", "2"]).stdout == "sb-2\nsb-3\n"
    assert json.loads(CliRunner().invoke(sandbox.app, ["fork", "sb-1", "--json"]).stdout) == answer
    assert [call[2] for call in api.calls] == [{"count": 2}, {"count": 1}]


def test_the_present_moment_is_marked(scripted) -> None:
    moments = [{"id": "bld-1", "kind": "pause"}, {"id": "bld-2", "kind": "snapshot", "name": "n", "current": True}]
    scripted({"items": moments}, {"items": moments})
    lines = CliRunner().invoke(sandbox.app, ["snapshots", "sb-1"]).stdout.splitlines()
    assert lines[1].split() == ["bld-1", "pause"] and lines[2].split() == ["*", "bld-2", "snapshot", "n"]
    assert json.loads(CliRunner().invoke(sandbox.app, ["snapshots", "sb-1", "--json"]).stdout) == {"items": moments}
