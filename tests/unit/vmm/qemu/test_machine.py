from __future__ import annotations

import asyncio
import errno
import os
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pytest

from tests.unit.vmm.specs import SPEC
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.vmm.log import Log, new_log
from wrenn_sandbox.vmm.process import Process
from wrenn_sandbox.vmm.qemu import machine
from wrenn_sandbox.vmm.qemu.machine import QemuMachine
from wrenn_sandbox.vmm.qemu.qmp import Monitor


class _Monitor:
    """Notes commands; ``xen-save-devices-state`` writes or fails as told."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.commands: list[str] = []
        self._failure = failure

    async def execute(self, command: str, **arguments: object) -> object:
        self.commands.append(command)
        return {}

    async def execute_with_file(self, command: str, fd: int, fdset: int, **arguments: object) -> None:
        self.commands.append(command)
        assert arguments == {"filename": f"/dev/fdset/{fdset}", "live": False}
        if self._failure is not None:
            raise self._failure
        os.write(fd, b"state")

    def listening_for(self, event: str) -> object:
        self.commands.append(f"listen {event}")
        return nullcontext(_Events())


class _Events:
    async def get(self) -> object:
        return {"event": "RESUME"}


class _Process:
    """Alive, or dead with a code."""

    pid = 7

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    async def settle(self, limit_s: float) -> bool:
        return self.code is not None

    async def wait(self) -> int:
        assert self.code is not None
        return self.code

    def required(self) -> nullcontext[None]:
        return nullcontext()


def _machine(monitor: _Monitor, process: _Process | None = None, log: Log | None = None) -> QemuMachine:
    empty = cast(Log, log)
    return QemuMachine(cast(Process, process or _Process()), cast(Monitor, monitor), empty, empty)


def test_a_snapshot_stops_first_and_writes_a_new_private_file(tmp_path: Path) -> None:
    monitor, state = _Monitor(), tmp_path / "state"
    asyncio.run(_machine(monitor).snapshot(state))
    assert monitor.commands == ["stop", "xen-save-devices-state"]
    assert state.read_bytes() == b"state"
    assert state.stat().st_mode & 0o777 == 0o600


def test_a_snapshot_that_fails_leaves_no_file(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(Unavailable):
        asyncio.run(_machine(_Monitor(Unavailable("no", slug="vmm_refused"))).snapshot(state))
    assert not state.exists()


def test_loading_listens_before_it_asks() -> None:
    monitor = _Monitor()
    asyncio.run(_machine(monitor).load())
    assert monitor.commands == ["listen RESUME", "migrate-incoming"]


def test_pause_and_resume_are_one_command_each() -> None:
    async def main() -> list[str]:
        monitor = _Monitor()
        await _machine(monitor).pause()
        await _machine(monitor).resume()
        return monitor.commands

    assert asyncio.run(main()) == ["stop", "cont"]


def test_an_end_has_a_reason() -> None:
    with new_log("test") as log:
        os.write(log.fd, b"no room\n")
        ended = asyncio.run(_machine(_Monitor(), _Process(1), log).wait())
    assert (ended.code, ended.reason) == (1, "QEMU failed with exit code 1: no room.")


@pytest.mark.parametrize(("code", "slug"), [(1, "vmm_failed"), (None, "vmm_gone")])
def test_a_start_that_fails_says_why_the_vmm_died(code: int | None, slug: str) -> None:
    async def main() -> None:
        with new_log("test") as log:
            async with machine._explained(cast(Process, _Process(code)), log, log):
                raise Unavailable("connection lost", slug="vmm_gone")

    with pytest.raises(Unavailable) as caught:
        asyncio.run(main())
    assert caught.value.slug == slug


def test_files_change_hands_by_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda _, uid, gid: owners.append((uid, gid)))
    path = tmp_path / "disk"
    path.touch()
    with machine._given(path, SPEC):
        assert path.stat().st_mode & 0o777 == 0o600
        path = path.rename(tmp_path / "layer")
    assert path.stat().st_mode & 0o777 == 0o644
    assert owners == [(SPEC.uid, SPEC.gid), (0, 0)]


def test_a_ram_file_is_never_taken_over(tmp_path: Path) -> None:
    from dataclasses import replace

    memory = tmp_path / "memory"
    memory.write_bytes(b"another's")
    spec = replace(SPEC, files=replace(SPEC.files, memory=memory))
    with pytest.raises(OSError, match=os.strerror(errno.EEXIST)), machine._memory(spec):
        pass
    assert memory.read_bytes() == b"another's"


def test_nothing_is_adopted_without_a_record(tmp_path: Path) -> None:
    from dataclasses import replace

    async def main() -> None:
        async with machine.adopted(replace(SPEC, run_dir=tmp_path), os.getpid()):
            pass

    with pytest.raises(NotFound):
        asyncio.run(main())
