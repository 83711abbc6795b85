from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from uuid import UUID

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.header import Header, parse
from wrenn_sandbox.disk import draft as drafts
from wrenn_sandbox.disk import durability
from wrenn_sandbox.disk.draft import Draft


@pytest.fixture
def draft(tmp_path: Path) -> Draft:
    (tmp_path / "draft").mkdir()
    return Draft(UUID(int=1), tmp_path / "draft")


def test_files_have_the_names_of_a_manifest(draft: Draft) -> None:
    assert [p.name for p in (draft.state, draft.memory, draft.disk)] == ["state", "memory", "disk.qcow2"]
    header = Header.flat(8192, UUID(int=1))
    draft.write_header(header)
    assert parse((draft.directory / "memory.header").read_bytes()) == header


def test_the_overlay_stays_where_it_is_until_its_sandbox_goes(draft: Draft, tmp_path: Path) -> None:
    overlay = tmp_path / "running.qcow2"
    overlay.write_bytes(b"blocks")
    draft.take_disk(overlay)
    assert overlay.stat().st_ino == draft.disk.stat().st_ino
    overlay.unlink()
    assert draft.disk.read_bytes() == b"blocks"


def test_an_overlay_on_another_file_system_is_refused(
    draft: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(Unavailable) as caught:
        draft.take_disk(tmp_path / "overlay")
    assert caught.value.slug == "disk_unavailable"


def test_settled_files_are_hashed_on_disk_and_read_only(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durability, "sync", synced.append)
    draft.state.write_bytes(b"state")
    draft.memory.write_bytes(b"")
    hashes = drafts.settle([draft.state, draft.memory])
    assert hashes == {"state": hashlib.sha256(b"state").hexdigest(), "memory": hashlib.sha256().hexdigest()}
    assert synced == [draft.state, draft.memory]
    assert draft.state.stat().st_mode & 0o777 == 0o444


def test_a_file_that_does_not_reach_the_disk_is_not_settled(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    draft.state.write_bytes(b"state")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        drafts.settle([draft.state])
