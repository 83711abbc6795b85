from __future__ import annotations

import os
from pathlib import Path

import pytest

from wrenn_sandbox.vmm.loan import lending, return_to_root

_UID, _GID = 1_900_000_001, 1_900_000_002


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """File name, uid and gid of every change of owner; no file really changes hands."""
    changes: list[tuple[str, int, int]] = []

    def note(fd: int, uid: int, gid: int) -> None:
        changes.append((Path(f"/proc/self/fd/{fd}").readlink().name, uid, gid))

    monkeypatch.setattr(os, "fchown", note)
    return changes


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_files_change_hands_by_descriptor(tmp_path: Path, owners: list[tuple[str, int, int]]) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    with lending(_UID, _GID) as loan:
        loan.give(disk)
        assert _mode(disk) == 0o600
        disk = disk.rename(tmp_path / "layer")
    assert _mode(disk) == 0o644
    assert owners == [("disk", _UID, _GID), ("layer", 0, 0)]


def test_one_file_takes_the_place_of_the_others(tmp_path: Path, owners: list[tuple[str, int, int]]) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    with lending(_UID, _GID) as loan:
        for path in paths:
            path.touch()
            last = loan.give(path, os.O_RDWR)
        loan.keep_only(last)
        assert [_mode(path) for path in paths] == [0o644, 0o644, 0o600]
        os.write(last, b"still ours to write")
        loan.take_back(last)
        assert _mode(paths[2]) == 0o644
    assert [uid for _, uid, _ in owners] == [_UID] * 3 + [0] * 3


def test_what_is_forgotten_stays_on_loan(tmp_path: Path, owners: list[tuple[str, int, int]]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    (tmp_path / "a").touch()
    with lending(_UID, _GID) as loan:
        loan.give(tmp_path / "a")
        loan.forget()
    assert owners == [("a", _UID, _GID)] and _mode(tmp_path / "a") == 0o600
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_every_file_comes_back_from_an_error(tmp_path: Path, owners: list[tuple[str, int, int]]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    (tmp_path / "a").touch()
    with pytest.raises(FileNotFoundError), lending(_UID, _GID) as loan:
        loan.give(tmp_path / "a")
        loan.give(tmp_path / "none")
    assert owners[-1] == ("a", 0, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_nobody_lent_can_be_returned_too(tmp_path: Path, owners: list[tuple[str, int, int]]) -> None:
    (tmp_path / "a").touch(0o600)
    with (tmp_path / "a").open("rb") as file:
        return_to_root(file.fileno())
    assert owners == [("a", 0, 0)]
    assert _mode(tmp_path / "a") == 0o644
