"""The disk of a live QEMU: a chain of overlays, of which the guest writes to the top one alone.

A snapshot that lets the guest go on puts a new overlay on top. The jail has no path to it, so the agent opens it and
hands the descriptors over; in QEMU it is a node named after its fdset::

    vda ─▶ disk11 (/dev/fdset/11) ─▶ disk4 (/dev/fdset/4) ─▶ disk (/disk) ─▶ layer0 (/layers/0) ─▶ ...
           read-write                read-only                read-only

QEMU opens an overlay anew, read-only, when it is covered. So its fdset keeps a read-only descriptor for as long as the
machine lives, and loses the writable one as soon as the overlay is in place: what has become a layer cannot be written
by a VMM that a guest took over, neither through a descriptor nor, since its owner changes then, by opening it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.vmm.cancels import to_the_end
from wrenn_sandbox.vmm.driver import MachineSpec
from wrenn_sandbox.vmm.loan import Loan, return_to_root
from wrenn_sandbox.vmm.qemu import argv
from wrenn_sandbox.vmm.qemu.qmp import Monitor

_READ, _WRITE = "overlay-read", "overlay-write"


class Disk:
    """The overlays of one QEMU, process ``pid``; the one it writes to is on ``loan``."""

    def __init__(self, monitor: Monitor, pid: int, loan: Loan, top: str | None = None) -> None:
        self._monitor = monitor
        self._pid = pid
        self._loan = loan
        self._top = top  # name of the node that the guest writes to; None when QEMU has to be asked

    async def writes_to(self, overlay: Path) -> bool:
        """Whether the guest's writes go to this file."""
        try:
            wanted = overlay.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat((await self._file(await self._node())).stat(), wanted)

    @asynccontextmanager
    async def beside(self, overlay: Path) -> AsyncIterator[str]:
        """Open the empty ``overlay`` in QEMU, above nothing yet, as the node that is yielded.

        Without a ``cover`` inside it is closed there again.
        """
        number = self._monitor.new_fdset()
        node = f"{argv.DISK_NODE}{number}"
        fd, writer = self._loan.give(overlay, os.O_RDWR), -1
        try:
            writer = await self._monitor.add_fd(fd, number, _WRITE)
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                await self._monitor.add_fd(reader, number, _READ)
            finally:
                os.close(reader)
            await self._monitor.execute("blockdev-add", **argv.overlay_node(node, f"/dev/fdset/{number}", None))
            yield node
        finally:
            with contextlib.suppress(Unavailable):
                if await to_the_end(self._node()) == node:
                    await to_the_end(self._kept(number, fd, writer))
                else:
                    await to_the_end(self._undone(node, number, fd))

    async def cover(self, node: str) -> None:
        """Put ``node`` on top: the guest writes there from now on. To be called while the machine is stopped.

        Raises Unavailable; past ``vmm_unresponsive`` only ``writes_to`` can tell whether it was done.
        """
        await to_the_end(self._cover(node))

    async def _cover(self, node: str) -> None:
        below, self._top = await self._node(), None
        try:
            await self._monitor.execute("blockdev-snapshot", node=below, overlay=node)
        except Unavailable as error:
            if error.slug != "vmm_unresponsive" or await self._node() != node:
                raise
        self._top = node

    async def adopt(self, spec: MachineSpec) -> None:
        """Find the overlay that another agent's QEMU writes to, and finish or undo what that agent was at."""
        top, nodes = await self._node(), await self._nodes()
        for number, fds in (await self._monitor.fdsets()).items():
            node = f"{argv.DISK_NODE}{number}"
            if number > argv.STATE_FDSET and not (node in nodes and await self._in_use(node)):
                await self._monitor.execute("remove-fd", fdset_id=number)
            elif _WRITE in fds:
                await self._monitor.execute("remove-fd", fdset_id=number, fd=fds[_WRITE])
        self._loan.give(await self._file(top))
        for layer in (spec.files.disk, *spec.files.backing):
            if layer.exists() and layer.stat().st_uid == spec.uid and not await self.writes_to(layer):
                with layer.open("rb") as file:
                    return_to_root(file.fileno())

    async def _kept(self, number: int, fd: int, writer: int) -> None:
        self._loan.keep_only(fd)
        await self._monitor.execute("remove-fd", fdset_id=number, fd=writer)

    async def _undone(self, node: str, number: int, fd: int) -> None:
        with contextlib.suppress(Unavailable):  # it may not have come to that
            await self._monitor.execute("blockdev-del", node_name=node)
        self._loan.take_back(fd)
        await self._monitor.execute("remove-fd", fdset_id=number)

    async def _in_use(self, node: str) -> bool:
        """Remove ``node`` unless something needs it; whether something does."""
        try:
            await self._monitor.execute("blockdev-del", node_name=node)
        except Unavailable as error:
            if error.slug != "vmm_refused":
                raise
            return True
        return False

    async def _node(self) -> str:
        """Name of the node that the guest's device is on."""
        if self._top is None:
            devices = cast(list[dict[str, Any]], await self._monitor.execute("query-block"))
            self._top = next(str(d["inserted"]["node-name"]) for d in devices if argv.DISK_DEVICE in d["qdev"])
        return self._top

    async def _nodes(self) -> frozenset[str]:
        nodes = cast(list[dict[str, Any]], await self._monitor.execute("query-named-block-nodes", flat=True))
        return frozenset(str(node["node-name"]) for node in nodes)

    async def _file(self, node: str) -> Path:
        """The file of an overlay's node, through the eyes of QEMU."""
        proc = Path(f"/proc/{self._pid}")
        if node == argv.DISK_NODE:
            return proc / "root" / argv.DISK.lstrip("/")
        number = int(node.removeprefix(argv.DISK_NODE))
        return proc / "fd" / str((await self._monitor.fdsets())[number][_READ])
