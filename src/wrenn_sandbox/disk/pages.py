"""The memory of a build, page by page, through its header and the files of the builds it names."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from wrenn_sandbox.core.errors import Bug
from wrenn_sandbox.core.extents import PAGE, Pages
from wrenn_sandbox.core.header import Header
from wrenn_sandbox.core.layers import ZEROS, broken
from wrenn_sandbox.disk import blocks
from wrenn_sandbox.disk.blocks import Content
from wrenn_sandbox.disk.durability import disk_errors
from wrenn_sandbox.vmm.transfer import Area

_WHAT = "the memory of a build"
#: Runs that are on average shorter are not read one by one.
_LONG_RUN_PAGES = 16


class PageSource:
    """Reads pages; a context that holds the files open. Any number of threads may read at once.

    ``files`` has the file of every build in the header. Every method raises Unavailable: ``build_broken`` when a file
    is missing or too short, ``disk_unavailable`` when the disk fails.
    """

    def __init__(self, header: Header, files: Mapping[UUID, Path]) -> None:
        self.header = header
        self.files = files
        self._descriptors: list[int] = []
        self._mappings: dict[int, NDArray[np.uint8]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        table = self.header.entries
        needed = np.zeros(len(table.builds) + 1, dtype=np.int64)
        np.maximum.at(needed, table.build, table.storage + table.count)
        with ExitStack() as opened, disk_errors(_WHAT):
            for build_id, blocks_needed in zip(table.builds, needed[1:].tolist(), strict=True):
                self._descriptors.append(_opened(opened, build_id, self.files.get(build_id), blocks_needed))
            self._stack = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._descriptors = []
        self._mappings.clear()
        self._stack.close()

    def gather(self, pages: Pages, out: Content | None = None) -> Content:
        """The pages with these numbers as an array of shape (n, 4096): the first rows of ``out``, or a new one."""
        out = blocks.empty(len(pages)) if out is None else out[: len(pages)]
        build, storage = self.header.entries.resolve(pages)
        numbers = [int(build[0])] if (build == build[:1]).all() and len(build) else np.unique(build).tolist()
        for number in numbers:
            rows = None if len(numbers) == 1 else np.flatnonzero(build == number)
            if number == ZEROS:
                out[slice(None) if rows is None else rows] = 0
                continue
            self._read(number, storage if rows is None else storage[rows], out, rows)
        return out

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes of the memory from ``offset`` on; raises Bug outside."""
        if length <= 0 or offset < 0:
            raise Bug(f"{length} bytes at {offset} cannot be read.")
        first, end = offset // PAGE, -(-(offset + length) // PAGE)
        content = self.gather(np.arange(first, end, dtype=np.int64)).reshape(-1)
        return content[offset - first * PAGE :][:length].tobytes()

    def descriptor(self, build_id: UUID) -> int:
        """The open file of a build in the header, as long as the context lasts."""
        return self._descriptor(self.header.entries.builds.index(build_id) + 1)

    def _read(self, number: int, wanted: Pages, out: Content, rows: Pages | None) -> None:
        if np.count_nonzero(np.diff(wanted) != 1) * _LONG_RUN_PAGES > len(wanted):
            try:
                self._mapped(number).read(wanted, out, rows)
            except OSError:
                pass  # the way below says what it is
            else:
                return
        with disk_errors(_WHAT):
            blocks.read(self._descriptor(number), wanted, out, rows)

    def _mapped(self, number: int) -> Area:
        """A file as memory of this process, from which many short runs are read at once. OSError."""
        if number not in self._mappings:
            mapped = mmap.mmap(self._descriptor(number), 0, prot=mmap.PROT_READ)
            self._mappings.setdefault(number, np.frombuffer(mapped, dtype=np.uint8))
        return Area(os.getpid(), self._mappings[number].ctypes.data)

    def _descriptor(self, number: int) -> int:
        if not self._descriptors:
            raise Bug("Pages are read within the source's context only.")
        return self._descriptors[number - 1]


def _opened(stack: ExitStack, build_id: UUID, path: Path | None, blocks_needed: int) -> int:
    if path is None:
        raise broken(f"the memory of build {build_id}, which lies below it, is not there")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise broken(f"the memory of build {build_id} is not there") from error
    stack.callback(os.close, fd)
    if os.fstat(fd).st_size < blocks_needed * PAGE:
        raise broken(f"the memory of build {build_id} is shorter than the header says")
    return fd
