from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from tests.unit.hostagent.world import request
from wrenn_sandbox.core.spec import Egress, Lifetime, NetworkPolicy, TimeoutAction
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.vmm.process import identify


def test_a_directory_lasts_as_long_as_its_context(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), journal.machine_directory(tmp_path, "sb-1") as path:
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "disk.qcow2").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    with journal.machine_directory(tmp_path, "sb-1"), journal.machine_directory(tmp_path, "sb-1") as second:
        assert second == tmp_path / "sb-1.1"
    assert list(tmp_path.iterdir()) == []


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


def test_what_runs_is_read_as_it_was_written(tmp_path: Path) -> None:
    wanted = request(Lifetime(7, TimeoutAction.KILL, 9.5, TimeoutAction.PAUSE), uuid4())
    network = NetworkPolicy(Egress.ALLOW_LIST, ("192.0.2.0/24",))
    wanted = replace(wanted, spec=replace(wanted.spec, network=network, envs={"A": "ä"}))
    content = journal.Record(wanted, 17, uuid4(), tmp_path / "memory")
    (tmp_path / "sb-1").mkdir()
    journal.write(tmp_path / "sb-1", content)
    assert (tmp_path / "sb-1" / journal.RECORD).stat().st_mode & 0o777 == 0o600
    first = journal.read(tmp_path / "sb-1")
    assert first is not None and first.created_at_unix_s == first.written_at_unix_s > 0
    assert replace(first, created_at_unix_s=0.0, written_at_unix_s=0.0) == content
    journal.write(tmp_path / "sb-1", content)
    again = journal.read(tmp_path / "sb-1")
    assert again is not None and again.created_at_unix_s == first.created_at_unix_s < again.written_at_unix_s
    journal.erase(tmp_path / "sb-1")
    assert journal.read(tmp_path / "sb-1") is None and journal.running(tmp_path) == {}


def test_of_two_records_of_a_sandbox_the_younger_counts(tmp_path: Path) -> None:
    content = journal.Record(request(), 17, uuid4(), tmp_path / "memory")
    for name in ("sb-1", "sb-1.1"):
        (tmp_path / name).mkdir()
        journal.write(tmp_path / name, content)
    assert list(journal.running(tmp_path)) == [tmp_path / "sb-1.1"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 99}', '{"version": 1, "request": {}}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "sb-1").mkdir()
    (tmp_path / "sb-1" / journal.RECORD).write_text(text)
    assert journal.running(tmp_path) == {}


def test_overlays_are_numbered_from_below(tmp_path: Path) -> None:
    for number in (10, 0, 2):
        journal.overlay(tmp_path, number).touch()
    assert [journal.number(path) for path in journal.overlays(tmp_path)] == [0, 2, 10]
