from __future__ import annotations

import os
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import NotFound
from wrenn_sandbox.vmm import record
from wrenn_sandbox.vmm.process import Identity, identify


def test_the_process_written_down_is_confirmed(tmp_path: Path) -> None:
    record.write(tmp_path, identify(os.getpid()))
    assert record.confirmed(tmp_path, os.getpid()) == identify(os.getpid())
    assert [path.name for path in tmp_path.iterdir()] == [record.RECORD]


@pytest.mark.parametrize("content", [None, "", "{", "{}", '{"pid": 1}', "[]"])
def test_no_record_is_no_machine(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / record.RECORD).write_text(content)
    with pytest.raises(NotFound) as caught:
        record.confirmed(tmp_path, os.getpid())
    assert caught.value.slug == "vmm_gone"


def test_a_record_that_cannot_be_read_now_says_nothing(tmp_path: Path) -> None:
    (tmp_path / record.RECORD).mkdir()
    with pytest.raises(IsADirectoryError):
        record.confirmed(tmp_path, os.getpid())


def test_a_number_that_was_used_again_is_not_the_machine(tmp_path: Path) -> None:
    me = identify(os.getpid())
    record.write(tmp_path, Identity(me.pid, me.start_ticks - 1))
    with pytest.raises(NotFound):
        record.confirmed(tmp_path, me.pid)
    with pytest.raises(NotFound):
        record.confirmed(tmp_path, me.pid + 1)


def test_the_record_goes_with_the_machine(tmp_path: Path) -> None:
    run_dir = tmp_path / "vmm"
    with pytest.raises(ZeroDivisionError), record.kept(run_dir, "qmp.sock"):
        record.write(run_dir, Identity(1, 2))
        (run_dir / "qmp.sock").touch()
        (run_dir / "other").touch()
        raise ZeroDivisionError
    assert [path.name for path in run_dir.iterdir()] == ["other"]
    assert run_dir.stat().st_mode & 0o777 == 0o700
