"""Something real fails in the middle of each operation: the sandbox is as that promises, and can do it again.

A full disk, which fails all of them, has a file of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.machine.underway import (
    CREATE,
    DESTROY,
    FORK,
    PAUSE,
    RESUME,
    ROLLBACK,
    SNAPSHOT,
    Operation,
    Stage,
    stage_on,
    until,
    vmm_of,
)
from tests.running import Platform
from wrenn_sandbox.core.slots import ENVD_PORT, slot
from wrenn_sandbox.hostagent import journal


@pytest.fixture
def stage(wrenn: Platform) -> Iterator[Stage]:
    with stage_on(wrenn) as here:
        yield here


@pytest.mark.parametrize("operation", [CREATE, RESUME, FORK, ROLLBACK], ids=lambda each: each.name)
def test_a_new_machine_dies_while_it_is_brought_up(stage: Stage, operation: Operation) -> None:
    sandbox = operation.prepare(stage)
    request, signs = operation.begin(stage, sandbox)
    os.kill(signs.vmm(), signal.SIGKILL)
    answer = request.answer()
    assert answer.status == 503
    assert answer.slug in {"jail_failed", "vmm_failed", "vmm_died", "vmm_gone"}, "by how far it was"
    operation.undone(stage, sandbox)
    operation.again(stage, sandbox)


def test_a_machine_does_not_answer_to_a_snapshot(stage: Stage) -> None:
    """It is let go when the first command to it was given up, which the removal of the overlay shows."""
    sandbox = SNAPSHOT.prepare(stage)
    overlay, machine = stage.wrenn.data_dir / "run" / sandbox / "disk-1.qcow2", vmm_of(stage.wrenn, sandbox)
    os.kill(machine, signal.SIGSTOP)
    try:
        request = SNAPSHOT.request(stage, sandbox)
        until(overlay.exists, "the overlay")
        until(lambda: not overlay.exists(), "the end of the snapshot")
    finally:
        os.kill(machine, signal.SIGCONT)
    assert request.answer().said == (503, "vmm_unresponsive")
    SNAPSHOT.undone(stage, sandbox)
    SNAPSHOT.again(stage, sandbox)


def test_a_guest_that_hangs_is_paused_as_it_is(stage: Stage) -> None:
    """Its envd stands still for a while, on both sides of the pause."""
    sandbox = PAUSE.prepare(stage)
    hang = "sleep 1; envd=$(pgrep -P 1 -f '[w]renn_sandbox.envd'); kill -STOP $envd; sleep 8; kill -CONT $envd"
    stage.wrenn.run(sandbox, "sudo", "sh", "-c", f"({hang}) >/dev/null 2>&1 &")
    until(lambda: _hangs(stage, sandbox), "the guest hangs")
    PAUSE.again(stage, sandbox)


def _hangs(stage: Stage, sandbox: str) -> bool:
    record = journal.read(stage.wrenn.data_dir / "run" / sandbox)
    assert record is not None
    try:
        httpx.get(f"http://{slot(record.slot).host_ip}:{ENVD_PORT}/health", timeout=0.5)
    except httpx.ReadTimeout:
        return True
    return False


def test_a_build_has_lost_a_file(stage: Stage) -> None:
    sandbox = RESUME.prepare(stage)
    (build,) = (stage.wrenn.data_dir / "builds").iterdir()
    kept, said = stage.wrenn.data_dir / "lost", {}
    for path in sorted(build.iterdir()):
        path.rename(kept)
        said[path.name] = RESUME.request(stage, sandbox).answer().said
        kept.rename(path)
        RESUME.undone(stage, sandbox)
    names = ["disk.qcow2", "memory", "memory.header", "state"]
    assert said == {"manifest.json": (404, "build_not_found")} | dict.fromkeys(names, (503, "build_broken"))
    RESUME.again(stage, sandbox)


def test_a_build_is_not_what_was_written(stage: Stage) -> None:
    sandbox = RESUME.prepare(stage)
    (build,) = (stage.wrenn.data_dir / "builds").iterdir()
    state = build / "state"
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    assert RESUME.request(stage, sandbox).answer().said == (503, "vmm_failed")
    RESUME.undone(stage, sandbox)
    state.write_bytes(content)
    RESUME.again(stage, sandbox)


def test_a_destroy_cannot_let_go_of_its_build(stage: Stage) -> None:
    """The machine does not answer, and the folder of holds cannot be written: it is ended when that can be again."""
    sandbox = RESUME.prepare(stage)
    assert RESUME.request(stage, sandbox).answer().status == 200
    machine = vmm_of(stage.wrenn, sandbox)
    os.kill(machine, signal.SIGSTOP)
    with read_only(stage.wrenn.data_dir / "holds"):
        assert DESTROY.request(stage, sandbox).answer().said == (503, "disk_unavailable")
        assert not Path(f"/proc/{machine}").exists()
        assert stage.status(sandbox) == "stopping"
    DESTROY.check(stage, sandbox)
    DESTROY.again(stage, sandbox)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
