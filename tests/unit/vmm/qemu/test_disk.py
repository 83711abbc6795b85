from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.vmm.specs import SPEC
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.vmm.loan import Loan
from wrenn_sandbox.vmm.qemu import argv
from wrenn_sandbox.vmm.qemu.disk import Disk
from wrenn_sandbox.vmm.qemu.qmp import Monitor


class _Qemu:
    """QEMU's nodes and fdsets, played in this process: its descriptors are ours."""

    def __init__(self) -> None:
        self.chain = ["disk"]  # top first
        self.spare: set[str] = set()
        self.sets: dict[int, dict[str, int]] = {1: {"": -1}}
        self.commands: list[str] = []
        self.refuses = ""
        self.silent_after = ""  # obeys this command, and says nothing from then on
        self.numbers = 1
        self._silent = False

    async def execute(self, command: str, **arguments: Any) -> object:
        self.commands.append(command)
        if self._silent:
            raise Unavailable("no answer", slug="vmm_unresponsive")
        if command == self.refuses:
            raise Unavailable("no", slug="vmm_refused")
        answer = getattr(self, f"_{command.replace('-', '_')}", lambda **_: {})(**arguments)
        if command == self.silent_after:
            raise Unavailable("no answer", slug="vmm_unresponsive")
        return cast(object, answer)

    def new_fdset(self) -> int:
        self.numbers += 1
        return self.numbers

    async def add_fd(self, fd: int, fdset: int, label: str) -> int:
        await self.execute("add-fd")
        inside = os.dup(fd)
        self.sets.setdefault(fdset, {})[label] = inside
        return inside

    async def fdsets(self) -> dict[int, dict[str, int]]:
        return {number: dict(fds) for number, fds in self.sets.items()}

    def _remove_fd(self, fdset_id: int, fd: int | None = None) -> None:
        if fdset_id not in self.sets:
            raise Unavailable("no such set", slug="vmm_refused")
        for label, inside in list(self.sets[fdset_id].items()):
            if fd in (None, inside):
                os.close(self.sets[fdset_id].pop(label))
        if not self.sets[fdset_id]:
            del self.sets[fdset_id]

    def _blockdev_add(self, **node: Any) -> None:
        assert node["backing"] is None and node["file"]["filename"] == f"/dev/fdset/{node['node-name'][4:]}"
        self.spare.add(node["node-name"])

    def _blockdev_del(self, node_name: str) -> None:
        if node_name not in self.spare:
            raise Unavailable("in use, or unknown", slug="vmm_refused")
        self.spare.remove(node_name)

    def _blockdev_snapshot(self, node: str, overlay: str) -> None:
        assert self.chain[0] == node
        self.spare.remove(overlay)
        self.chain.insert(0, overlay)

    def _query_block(self) -> object:
        return [
            {"qdev": "/machine/peripheral/vdb/virtio-backend", "inserted": {"node-name": "tools"}},
            {"qdev": "/machine/peripheral/vda/virtio-backend", "inserted": {"node-name": self.chain[0]}},
        ]

    def _query_named_block_nodes(self, flat: bool) -> object:
        return [{"node-name": name} for name in (*self.chain, *self.spare)]

    def close(self) -> None:
        for fds in self.sets.values():
            for fd in fds.values():
                if fd >= 0:
                    os.close(fd)


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    before = len(list(Path("/proc/self/fd").iterdir()))
    played = _Qemu()
    yield played
    played.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def loan(qemu: _Qemu):
    lent = Loan(SPEC.uid, SPEC.gid)
    yield lent
    lent.end()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    paths = (tmp_path / "disk", tmp_path / "one", tmp_path / "two")
    for path in paths:
        path.touch(0o600)
    return paths


def _disk(qemu: _Qemu, loan: Loan, top: str | None = argv.DISK_NODE) -> Disk:
    return Disk(cast(Monitor, qemu), os.getpid(), loan, top)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def _covered(disk: Disk, overlay: Path) -> None:
    async with disk.beside(overlay) as node:
        await disk.cover(node)


def test_overlay_after_overlay_is_put_on_top(qemu: _Qemu, loan: Loan, files: tuple[Path, ...]) -> None:
    disk = _disk(qemu, loan)
    first, one, two = files
    loan.give(first)

    async def main() -> None:
        await _covered(disk, one)
        assert (_mode(first), _mode(one)) == (0o644, 0o600)
        await _covered(disk, two)
        assert (_mode(one), _mode(two)) == (0o644, 0o600)
        assert await disk.writes_to(two)
        assert not await disk.writes_to(one)
        assert not await disk.writes_to(two.with_name("none"))

    _run(main)
    assert qemu.chain == ["disk3", "disk2", "disk"]
    assert {number: set(fds) for number, fds in qemu.sets.items() if number > 1} == {
        2: {"overlay-read"},
        3: {"overlay-read"},
    }


@pytest.mark.parametrize("refuses", ["add-fd", "blockdev-add", "blockdev-snapshot"])
def test_a_refusal_leaves_nothing(qemu: _Qemu, loan: Loan, files: tuple[Path, ...], refuses: str) -> None:
    disk = _disk(qemu, loan)
    qemu.refuses = refuses

    async def main() -> None:
        with pytest.raises(Unavailable):
            await _covered(disk, files[1])
        assert await disk._node() == "disk"

    _run(main)
    assert (qemu.chain, qemu.spare, list(qemu.sets)) == (["disk"], set(), [1])
    assert _mode(files[1]) == 0o644  # nobody's but root's


def test_a_failure_elsewhere_leaves_nothing(qemu: _Qemu, loan: Loan, files: tuple[Path, ...]) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with _disk(qemu, loan).beside(files[1]):
                raise ZeroDivisionError

    _run(main)
    assert (qemu.chain, qemu.spare, list(qemu.sets)) == (["disk"], set(), [1])


def test_a_command_that_was_obeyed_without_an_answer_has_worked(
    qemu: _Qemu, loan: Loan, files: tuple[Path, ...]
) -> None:
    qemu.silent_after = "blockdev-snapshot"
    _run(lambda: _covered(_disk(qemu, loan), files[1]))
    assert qemu.chain == ["disk2", "disk"]
    assert _mode(files[1]) == 0o600


def test_a_command_that_was_lost_has_not(qemu: _Qemu, loan: Loan, files: tuple[Path, ...]) -> None:
    qemu.silent_after = "blockdev-snapshot"
    qemu._blockdev_snapshot = lambda **_: None  # type: ignore[method-assign]

    async def main() -> None:
        with pytest.raises(Unavailable, match="no answer"):
            await _covered(_disk(qemu, loan), files[1])

    _run(main)
    assert (qemu.chain, qemu.spare, list(qemu.sets)) == (["disk"], set(), [1])


def test_a_vmm_gone_silent_is_asked_again_later(qemu: _Qemu, loan: Loan, files: tuple[Path, ...]) -> None:
    qemu.silent_after = "blockdev-snapshot"
    disk = _disk(qemu, loan)

    async def main() -> None:
        answers = qemu._query_block
        qemu._query_block = lambda: (_ for _ in ()).throw(Unavailable("no", slug="vmm_unresponsive"))  # type: ignore
        with pytest.raises(Unavailable):
            await _covered(disk, files[1])
        assert _mode(files[1]) == 0o600  # still on loan: it may be written to
        qemu._query_block = answers  # type: ignore[method-assign]
        assert await disk.writes_to(files[1])

    _run(main)


def _spec(files: tuple[Path, ...]):
    disk, *backing = files
    return replace(SPEC, uid=os.getuid(), files=replace(SPEC.files, disk=disk, backing=tuple(backing)))


@pytest.mark.parametrize("done", [True, False], ids=["covered", "not-covered"])
def test_what_a_dead_agent_was_at_is_finished_or_undone(
    qemu: _Qemu, loan: Loan, files: tuple[Path, ...], done: bool
) -> None:
    first, one, two = files

    async def main() -> None:
        loan_before = Loan(0, 0)
        await _covered(_disk(qemu, loan_before), one)
        fd = os.open(two, os.O_RDWR)
        await qemu.add_fd(fd, 3, "overlay-write")
        await qemu.add_fd(fd, 3, "overlay-read")
        await qemu.add_fd(fd, 4, "state")
        os.close(fd)
        qemu.spare.add("disk3")
        if done:
            qemu._blockdev_snapshot("disk2", "disk3")
        loan_before.end()
        disk = _disk(qemu, loan, None)
        await disk.adopt(_spec((two, one, first)))
        top, other = (two, one) if done else (one, two)
        assert await disk.writes_to(top)
        assert (_mode(top), _mode(other), _mode(first)) == (0o600, 0o644, 0o644)

    _run(main)
    labels = {number: set(fds) for number, fds in qemu.sets.items() if number > 1}
    assert labels == ({2: {"overlay-read"}} | ({3: {"overlay-read"}} if done else {}))
    assert qemu.spare == set()


def test_a_disk_that_was_never_covered_is_adopted(
    qemu: _Qemu, loan: Loan, files: tuple[Path, ...], monkeypatch
) -> None:
    async def file(_: Disk, node: str) -> Path:
        assert node == "disk"
        return files[0]

    monkeypatch.setattr(Disk, "_file", file)
    _run(lambda: _disk(qemu, loan, None).adopt(_spec(files)))
    assert _mode(files[0]) == 0o600
