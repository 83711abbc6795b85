from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tests.unit.vmm.specs import SPEC
from wrenn_sandbox.core.errors import Exhausted, NotFound, Unavailable
from wrenn_sandbox.vmm.driver import Ram
from wrenn_sandbox.vmm.log import Log, new_log
from wrenn_sandbox.vmm.process import Process
from wrenn_sandbox.vmm.qemu import machine
from wrenn_sandbox.vmm.qemu.disk import Disk
from wrenn_sandbox.vmm.qemu.machine import Logs, QemuMachine
from wrenn_sandbox.vmm.qemu.pace import Pace
from wrenn_sandbox.vmm.qemu.qmp import Monitor

RAM = Ram(7, 0x7F00_0000_0000, 256 << 20)


class _Monitor:
    """Notes commands; ``xen-save-devices-state`` writes, and the command ``failing`` fails."""

    def __init__(self, failing: str = "", status: str = "running") -> None:
        self.commands: list[str] = []
        self._failing = failing
        self._status = status
        self._fd = -1

    async def execute(self, command: str, **arguments: object) -> object:
        self.commands.append(command)
        if command == self._failing:
            raise Unavailable("no", slug="vmm_refused")
        if command == "xen-save-devices-state":
            assert arguments == {"filename": "/dev/fdset/4", "live": False}
            os.write(self._fd, b"state")
        if command == "remove-fd":
            assert arguments == {"fdset_id": 4}
        return {"status": self._status}

    def new_fdset(self) -> int:
        return 4

    async def add_fd(self, fd: int, fdset: int, label: str) -> int:
        await self.execute("add-fd")
        assert (fdset, label) == (4, "state")
        self._fd = fd
        return 30

    def listening_for(self, event: str) -> object:
        self.commands.append(f"listen {event}")
        return nullcontext(_Events())


class _Events:
    async def get(self) -> object:
        return {"event": "RESUME"}


class _Disk:
    """Notes what it is asked between the monitor's commands."""

    def __init__(self, commands: list[str]) -> None:
        self._commands = commands

    @asynccontextmanager
    async def beside(self, overlay: Path) -> AsyncIterator[str]:
        self._commands.append(f"open {overlay.name}")
        try:
            yield "node"
        finally:
            self._commands.append("settle")

    async def cover(self, node: str) -> None:
        self._commands.append(f"cover with {node}")

    async def writes_to(self, overlay: Path) -> bool:
        return overlay.name == "top"


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
    logs = Logs(cast(Log, log), cast(Log, log))
    disk = cast(Disk, _Disk(monitor.commands))
    pace = Pace("sb-1", monitor)
    return QemuMachine(cast(Process, process or _Process()), cast(Monitor, monitor), logs, RAM, disk=disk, pace=pace)


def test_a_snapshot_stops_first_and_writes_a_new_private_file(tmp_path: Path) -> None:
    monitor, state = _Monitor(), tmp_path / "state"
    asyncio.run(_machine(monitor).snapshot(state))
    assert monitor.commands == ["add-fd", "stop", "xen-save-devices-state", "remove-fd"]
    assert state.read_bytes() == b"state"
    assert state.stat().st_mode & 0o777 == 0o600


def test_the_guest_is_stopped_only_when_all_is_ready(tmp_path: Path) -> None:
    monitor = _Monitor()
    asyncio.run(_machine(monitor).snapshot(tmp_path / "state", tmp_path / "above"))
    ready, stopped = ["add-fd", "open above"], ["stop", "xen-save-devices-state", "cover with node"]
    assert monitor.commands == [*ready, *stopped, "settle", "remove-fd"]


@pytest.mark.parametrize("failing", ["add-fd", "stop", "xen-save-devices-state"])
def test_a_snapshot_that_fails_leaves_no_file_and_covers_nothing(tmp_path: Path, failing: str) -> None:
    monitor, state = _Monitor(failing), tmp_path / "state"
    with pytest.raises(Unavailable):
        asyncio.run(_machine(monitor).snapshot(state, tmp_path / "above"))
    assert not state.exists()
    assert monitor.commands[-1] == "remove-fd"
    assert "cover with node" not in monitor.commands


def test_a_full_disk_is_told_from_another_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Exhausted) as caught:
        asyncio.run(_machine(_Monitor("xen-save-devices-state")).snapshot(tmp_path / "state"))
    assert caught.value.slug == "host_disk_full"
    assert not (tmp_path / "state").exists()


def test_a_cleanup_that_fails_does_not_undo_a_snapshot(tmp_path: Path) -> None:
    asyncio.run(_machine(_Monitor("remove-fd")).snapshot(tmp_path / "state"))
    assert (tmp_path / "state").read_bytes() == b"state"


def test_memory_and_disk_are_told() -> None:
    vm = _machine(_Monitor())
    assert vm.ram == RAM
    assert asyncio.run(vm.writes_to(Path("top")))


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
            async with machine._explained(cast(Process, _Process(code)), Logs(log, log)):
                raise Unavailable("connection lost", slug="vmm_gone")

    with pytest.raises(Unavailable) as caught:
        asyncio.run(main())
    assert caught.value.slug == slug


def test_a_ram_file_is_never_taken_over(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(b"another's")
    spec = replace(SPEC, files=replace(SPEC.files, memory=memory))
    with pytest.raises(OSError, match=os.strerror(errno.EEXIST)):
        machine._make_memory(spec)
    assert memory.read_bytes() == b"another's"


def test_a_new_ram_file_is_private_and_empty(tmp_path: Path) -> None:
    spec = replace(SPEC, files=replace(SPEC.files, memory=tmp_path / "memory"))
    machine._make_memory(spec)
    info = spec.files.memory.stat()
    assert (info.st_size, info.st_blocks, info.st_mode & 0o777) == (1024 << 20, 0, 0o600)


def test_nothing_is_adopted_without_a_record(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine.adopted(replace(SPEC, run_dir=tmp_path), os.getpid()):
            pass

    with pytest.raises(NotFound):
        asyncio.run(main())


@pytest.mark.parametrize("status", ["running", "paused", "inmigrate"])
def test_a_machine_that_never_ran_is_not_adopted(status: str) -> None:
    check = machine._require_loaded(cast(Monitor, _Monitor(status=status)), SPEC)
    if status == "inmigrate":
        with pytest.raises(NotFound) as caught:
            asyncio.run(check)
        assert caught.value.slug == "vmm_gone"
    else:
        asyncio.run(check)
