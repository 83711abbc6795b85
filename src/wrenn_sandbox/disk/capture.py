"""Capture: the pages of a stopped guest that differ from the build it was restored from, into one file.

The guest stands still meanwhile, so every millisecond counts. Private pages are read in pieces that stay in a core's
cache, compared there with what the build below has, and those that differ are written one after another; two pieces
are in work at a time. A page equal to the one below is left out; one that became zero takes no room in the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wrenn_sandbox.core.errors import Bug
from wrenn_sandbox.core.extents import PAGE, Extents, Flags, Pages, runs
from wrenn_sandbox.disk import blocks
from wrenn_sandbox.disk.blocks import Content
from wrenn_sandbox.disk.durability import disk_errors
from wrenn_sandbox.disk.pages import PageSource
from wrenn_sandbox.vmm import ram as memory
from wrenn_sandbox.vmm.driver import Ram
from wrenn_sandbox.vmm.ram import CHUNK_PAGES

_WORKERS = 2
#: Fewer pages than this are done sooner than a second thread is there.
_WORTH_A_THREAD_PAGES = 4 * CHUNK_PAGES
_KEPT_ROOMS = 4
#: Room for two pieces each, kept for the next capture: to get memory from the kernel takes longer than to fill it.
_rooms: list[tuple[Content, Content]] = []


@dataclass(frozen=True, slots=True)
class Captured:
    """What a capture found: ``extents`` for ``Header.extended``, whose data lie in the file in their order."""

    extents: Extents
    bytes_written: int
    pages_examined: int


def capture(ram: Ram, parent: PageSource, target: Path) -> Captured:
    """Write what changed since ``parent``, the open source of the build below, to the new file ``target``, not synced.

    The guest must be stopped. Blocks. Whatever it raises, no file is left: Unavailable (``vmm_gone``,
    ``build_broken``, ``disk_unavailable``), Exhausted (``host_disk_full``).
    """
    if parent.header.size != ram.size:
        raise Bug(f"A memory of {ram.size} bytes was captured above one of {parent.header.size}.")
    pages = memory.private_pages(ram)
    pieces = [pages[at : at + CHUNK_PAGES] for at in range(0, len(pages), CHUNK_PAGES)]
    workers = _WORKERS if len(pages) >= _WORTH_A_THREAD_PAGES else 1
    with disk_errors("the memory of a snapshot"), _new_file(target) as fd:
        work = _Capture(ram, parent, fd)
        places: list[Future[int]] = [Future() for _ in range(len(pieces) + 1)]
        places[0].set_result(0)
        tasks = list(zip(pieces, places, places[1:], strict=False))
        if workers == 1:
            done = [work.piece(*task) for task in tasks]
        else:
            with ThreadPoolExecutor(workers, "capture") as pool:
                done = [future.result() for future in [pool.submit(work.piece, *task) for task in tasks]]
        written = places[-1].result() * PAGE
    changed = np.concatenate([piece for piece, _ in done]) if done else pages
    zero = np.concatenate([flags for _, flags in done]) if done else np.zeros(0, dtype=np.bool_)
    return Captured(runs(changed, zero), written, len(pages))


@dataclass(frozen=True, slots=True)
class _Capture:
    """The work on one guest, whose pieces any number of threads may do."""

    ram: Ram
    parent: PageSource
    fd: int

    def piece(self, pages: Pages, place: Future[int], next_place: Future[int]) -> tuple[Pages, Flags]:
        """The changed ones of ``pages`` and which of those are zero; the others are in the file, from ``place`` on."""
        room = _room()
        try:
            changed, data = self._compared(pages, *room)
            kept = np.flatnonzero(data)
            start = place.result()
            next_place.set_result(start + len(kept))
            content, packed = room
            if len(kept) < len(pages):
                content = np.take(content, kept, axis=0, out=packed[: len(kept)], mode="clip")
            blocks.write_whole(self.fd, blocks.as_bytes(content[: len(kept)]), start * PAGE)
            return pages[changed], ~data[changed]
        except BaseException as error:
            if not next_place.done():  # or the pieces behind this one would wait for ever
                next_place.set_exception(error)
            raise
        finally:
            if len(_rooms) < _KEPT_ROOMS:
                _rooms.append(room)

    def _compared(self, pages: Pages, mine: Content, theirs: Content) -> tuple[Flags, Flags]:
        """Of each page, whether it changed, and whether it did and is not zero; ``mine`` has their content then."""
        memory.read_into(self.ram, pages, mine)
        words = mine[: len(pages)].view(np.uint64)
        changed = (words != self.parent.gather(pages, theirs).view(np.uint64)).any(axis=1)
        return changed, changed & words.any(axis=1)


def _room() -> tuple[Content, Content]:
    try:
        return _rooms.pop()
    except IndexError:
        return blocks.empty(CHUNK_PAGES), blocks.empty(CHUNK_PAGES)


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
