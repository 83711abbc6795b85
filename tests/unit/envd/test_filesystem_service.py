from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.envd.asgi import Answer, call
from wrenn_sandbox.envd import filesystem_service
from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.files import FileAccess
from wrenn_sandbox.envd.filesystem_service import FilesystemService
from wrenn_sandbox.envd.http import Header
from wrenn_sandbox.envd.rights import FileThreads
from wrenn_sandbox.rpc.gen.envd.filesystem_connect import FilesystemASGIApplication

ACCESS = FileAccess(GuestContext(default_user="root"), FileThreads(1))


def rpc(method: str, headers: Sequence[Header] = (), **fields: object) -> Answer:
    application = FilesystemASGIApplication(FilesystemService(ACCESS))
    body = json.dumps(fields).encode()
    path = f"/filesystem.Filesystem/{method}"
    kind = (b"content-type", b"application/json")
    return asyncio.run(call(application, "POST", path, body, [kind, *headers]))  # type: ignore[arg-type]


def code(answer: Answer) -> str:
    return str(answer.json()["code"])  # type: ignore[index]


def test_stat(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("hello")
    (tmp_path / "link").symlink_to("f")
    entry = rpc("Stat", path=str(tmp_path / "link")).json()["entry"]
    assert entry["modifiedTime"].endswith("Z")
    assert (entry["name"], entry["path"], entry["type"]) == ("link", f"{tmp_path}/link", "FILE_TYPE_FILE")
    assert (entry["size"], entry["mode"], entry["permissions"]) == ("5", 0o644, "-rw-r--r--")
    assert entry["symlinkTarget"] == f"{tmp_path}/f"
    assert code(rpc("Stat", path=str(tmp_path / "missing"))) == "not_found"
    assert code(rpc("Stat", path=str(tmp_path / "f" / "below"))) == "not_found"
    assert code(rpc("Stat", path="/a\0b")) == "invalid_argument"


def test_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "f").write_text("")
    (tmp_path / "loop").symlink_to("loop")

    def names(**fields: object) -> list[str]:
        return [entry["name"] for entry in rpc("ListDir", path=str(tmp_path), **fields).json()["entries"]]

    assert names() == names(depth=1) == ["d", "f", "loop"]
    assert names(depth=2) == ["d", "e", "f", "loop"]
    assert rpc("ListDir", path=str(tmp_path / "d" / "e")).json() == {}
    assert code(rpc("ListDir", path=str(tmp_path / "missing"))) == "not_found"
    assert code(rpc("ListDir", path=str(tmp_path / "f"))) == "invalid_argument"
    assert code(rpc("ListDir", path=str(tmp_path / "f" / "x"))) == "not_found"
    assert code(rpc("ListDir", path=str(tmp_path / "loop"))) == "failed_precondition"
    monkeypatch.setattr(filesystem_service, "MAX_ENTRIES", 2)
    assert code(rpc("ListDir", path=str(tmp_path))) == "resource_exhausted"


def test_make_dir(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert rpc("MakeDir", path=str(path)).json()["entry"]["type"] == "FILE_TYPE_DIRECTORY"
    assert path.is_dir()
    assert code(rpc("MakeDir", path=str(path))) == "already_exists"
    (tmp_path / "f").write_text("")
    for name in ("f", "f/x"):
        assert code(rpc("MakeDir", path=str(tmp_path / name))) == "invalid_argument"


def test_move(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("new")
    (tmp_path / "old").write_text("old")
    entry = rpc("Move", source=str(tmp_path / "f"), destination=str(tmp_path / "old")).json()["entry"]
    assert entry["path"] == str(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"
    assert rpc("Move", source=str(tmp_path / "old"), destination=str(tmp_path / "x" / "y")).status == 200
    assert (tmp_path / "x" / "y").read_text() == "new"
    assert rpc("Move", source=str(tmp_path / "x"), destination=str(tmp_path / "z")).status == 200
    assert code(rpc("Move", source=str(tmp_path / "missing"), destination=str(tmp_path / "w"))) == "not_found"
    assert not (tmp_path / "w").exists()
    (tmp_path / "full" / "x").mkdir(parents=True)
    assert code(rpc("Move", source=str(tmp_path / "z"), destination=str(tmp_path / "full"))) == "failed_precondition"
    (tmp_path / "plain").write_text("")
    for inside in (tmp_path / "full" / "x" / "y", tmp_path / "plain" / "y"):  # below itself, below a file
        moved = rpc("Move", source=str(tmp_path / "full"), destination=str(inside))
        assert code(moved) == "invalid_argument"


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "f").write_text("")
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    for name in ("d", "link", "missing", "missing/below"):
        assert rpc("Remove", path=str(tmp_path / name)).status == 200
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert code(rpc("Remove", path="/")) == "invalid_argument"


def test_users() -> None:
    stranger = [(b"authorization", b"Basic bm9ib2R5LWtub3dzOg==")]
    assert code(rpc("Stat", stranger, path="/")) == "unauthenticated"


def test_watching_is_not_there_yet() -> None:
    assert code(rpc("CreateWatcher", path="/")) == "unimplemented"
