from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.unit.hostagent.world import request
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.spec import Egress, Lifetime, NetworkPolicy, SandboxSpec, Shape, TimeoutAction
from wrenn_sandbox.hostagent import journal
from wrenn_sandbox.hostagent.request import Request
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
    assert journal.read(tmp_path / "sb-1") is None and journal.survey(tmp_path).running == {}


def test_of_two_records_of_a_sandbox_the_younger_counts(tmp_path: Path) -> None:
    content = journal.Record(request(), 17, uuid4(), tmp_path / "memory")
    for name in ("sb-1", "sb-1.1"):
        (tmp_path / name).mkdir()
        journal.write(tmp_path / name, content)
    assert list(journal.survey(tmp_path).running) == [tmp_path / "sb-1.1"]


UNREADABLE = ["", "{}", "[]", '"x"', '{"version": 99}', '{"version": 1, "request": {}}']


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_record_that_cannot_be_read_is_rubbish_once_its_machine_has_gone(tmp_path: Path, text: str) -> None:
    left = tmp_path / f"sb-{uuid4()}"
    left.mkdir()
    (left / journal.RECORD).write_text(text)
    with pytest.raises(journal.Unreadable):
        journal.read(left)
    assert journal.survey(tmp_path) == journal.Survey({}, {}, [left])


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_machine_that_lives_is_left_alone_whatever_its_record_says(tmp_path: Path, text: str) -> None:
    sandbox_id = SandboxId(uuid4())
    left, stranger, unborn = tmp_path / f"{sandbox_id}.1", tmp_path / "bake-1", tmp_path / f"sb-{uuid4()}"
    for path in (left, stranger, unborn):
        alive_as_we_are(path)
    for path in (left, stranger):
        (path / journal.RECORD).write_text(text)
    assert journal.survey(tmp_path) == journal.Survey(
        {}, {left: sandbox_id}, [p for p in tmp_path.iterdir() if p != left]
    )


def test_a_disk_that_cannot_be_read_is_no_reason_to_end_a_machine(tmp_path: Path) -> None:
    left = tmp_path / f"sb-{uuid4()}"
    (left / "vmm" / "vmm.json").mkdir(parents=True)  # reading it is an OSError
    (left / journal.RECORD).mkdir()
    assert list(journal.survey(tmp_path).unreadable) == [left] and journal.vmm_lives(left)
    with pytest.raises(IsADirectoryError):
        journal.vmm_pid(left)
    with pytest.raises(IsADirectoryError):
        asyncio.run(journal.clear(left))
    assert left.exists()


def test_a_record_that_cannot_be_read_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / journal.RECORD).write_text("{}")
    journal.write(tmp_path, journal.Record(request(), 17, uuid4(), tmp_path / "memory"))
    record = journal.read(tmp_path)
    assert record is not None and record.slot == 17


def test_the_slot_is_known_if_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / journal.RECORD).write_text('{"version": 99, "slot": 17}')
    assert journal.slot_number(tmp_path) == 17
    (tmp_path / journal.RECORD).write_text("{}")
    assert journal.slot_number(tmp_path) is None
    alive_as_we_are(tmp_path)
    assert journal.slot_number(tmp_path) is None, "our uid is no VMM's"


def test_the_first_version_of_the_record_is_read_for_ever(tmp_path: Path) -> None:
    """As agents wrote it whose machines may still run: a change here strands them."""
    (tmp_path / journal.RECORD).write_text(VERSION_1)
    record = journal.read(tmp_path)
    assert record is not None
    lifetime = Lifetime(7, TimeoutAction.KILL, 9.5, TimeoutAction.PAUSE)
    network = NetworkPolicy(Egress.ALLOW_LIST, ("192.0.2.0/24",), ())
    spec = SandboxSpec("base", Shape(2, 1024), lifetime, network, {"A": "b"}, "user", "/home/user", "t" * 32)
    wanted = Request(SandboxId(UUID(int=1)), spec, str(UUID(int=2)), UUID(int=3))
    assert record == journal.Record(wanted, 17, UUID(int=4), Path("/b/memory"), 1.5, 2.5)


def alive_as_we_are(machine: Path) -> None:
    """A machine whose VMM this very process would be."""
    (machine / "vmm").mkdir(parents=True)
    me = identify(os.getpid())
    (machine / "vmm" / "vmm.json").write_text(json.dumps({"pid": me.pid, "start_ticks": me.start_ticks, "more": 1}))


VERSION_1 = """
{"version": 1, "request": {"id": {"value": "00000000-0000-0000-0000-000000000001"}, "spec": {"template": "base",
"shape": {"vcpus": 2, "memory_mib": 1024}, "lifetime": {"idle_timeout_s": 7, "idle_action": "kill",
"ends_at_unix_s": 9.5, "deadline_action": "pause"}, "network": {"egress": "allow_list", "allow_out": ["192.0.2.0/24"],
"deny_out": []}, "envs": {"A": "b"}, "default_user": "user", "default_workdir": "/home/user",
"access_token": "tttttttttttttttttttttttttttttttt"}, "template_id": "00000000-0000-0000-0000-000000000002",
"build_id": "00000000-0000-0000-0000-000000000003"}, "slot": 17, "parent": "00000000-0000-0000-0000-000000000004",
"memory": "/b/memory", "created_at_unix_s": 1.5, "written_at_unix_s": 2.5}
"""


def test_overlays_are_numbered_from_below(tmp_path: Path) -> None:
    for number in (10, 0, 2):
        journal.overlay(tmp_path, number).touch()
    assert [journal.number(path) for path in journal.overlays(tmp_path)] == [0, 2, 10]
