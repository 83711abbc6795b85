"""Control groups, in a directory of files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from wrenn_sandbox.envd import cgroups
from wrenn_sandbox.envd.cgroups import MIB, Cgroups, Group, settings

LOG = logging.getLogger("test")


def test_the_user_group_leaves_an_eighth_or_128_mib() -> None:
    assert settings(512 * MIB)[Group.USER] == {"cpu.weight": 50, "memory.high": 448 * MIB}
    assert settings(8192 * MIB)[Group.USER]["memory.high"] == (8192 - 128) * MIB


def test_the_other_groups() -> None:
    made = settings(512 * MIB)
    assert made[Group.PTYS] == {"cpu.weight": 200}
    assert made[Group.SOCATS] == {"cpu.weight": 150, "memory.min": 5 * MIB, "memory.low": 8 * MIB}
    assert made[Group.ENVD]["cpu.weight"] > 200


def test_groups_are_made_and_envd_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_favour_moves", lambda root, log: None)
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    made = Cgroups.prepare(LOG, tmp_path)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (tmp_path / "user" / "cpu.weight").read_text() == "50"
    assert (tmp_path / "socats" / "memory.min").read_text() == str(5 * MIB)
    assert (tmp_path / "envd" / "cgroup.procs").read_text() == "0"
    assert made.procs(Group.PTYS) == tmp_path / "ptys" / "cgroup.procs"
    assert Cgroups.prepare(LOG, tmp_path) == made  # again, as after a restart of envd


def test_a_kernel_without_the_memory_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_favour_moves", lambda root, log: None)
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    assert Cgroups.prepare(LOG, tmp_path).procs(Group.USER) is not None
    assert not (tmp_path / "user" / "memory.high").exists()


def test_without_version_2_there_are_none(tmp_path: Path) -> None:
    assert Cgroups.prepare(LOG, tmp_path).procs(Group.USER) is None
