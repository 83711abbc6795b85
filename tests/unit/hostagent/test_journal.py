from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.vmm.process import identify


def test_a_directory_lasts_as_long_as_its_context(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), journal.machine_directory(tmp_path, "sb-1") as path:
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "disk.qcow2").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    with journal.machine_directory(tmp_path, "sb-1"), pytest.raises(FileExistsError):
        journal.machine_directory(tmp_path, "sb-1").__enter__()


@pytest.mark.parametrize("record", [None, "", "{}", "not json", '{"pid": 4194305, "start_ticks": 1}'])
def test_a_sweep_removes_whatever_it_finds(tmp_path: Path, record: str | None) -> None:
    vmm = tmp_path / "run" / "sb-1" / "vmm"
    vmm.mkdir(parents=True)
    if record is not None:
        (vmm / "vmm.json").write_text(record)
    assert asyncio.run(journal.sweep(tmp_path / "run")) == 1
    assert list((tmp_path / "run").iterdir()) == []


def test_a_number_that_is_used_again_is_not_killed(tmp_path: Path) -> None:
    vmm = tmp_path / "sb-1" / "vmm"
    vmm.mkdir(parents=True)
    (vmm / "vmm.json").write_text(
        json.dumps({"pid": os.getpid(), "start_ticks": identify(os.getpid()).start_ticks + 1})
    )
    assert asyncio.run(journal.sweep(tmp_path)) == 1, "and this test goes on"


def test_a_first_start_finds_nothing(tmp_path: Path) -> None:
    assert asyncio.run(journal.sweep(tmp_path / "new")) == 0
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
