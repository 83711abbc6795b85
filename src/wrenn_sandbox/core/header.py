"""The memory header of a build: where each page of the guest's memory is, in this build's file or in one below.

Two binary forms, both little-endian, are read; the second is written. Version 1::

     0  8  version = 1                     64 + 40k  8  offset in guest memory
     8  8  block size = 4096                    + 8  8  length
    16  8  memory size in bytes                 +16 16  build id, all zero for zeros
    24  8  generation, 0 first                  +32  8  offset in that build's file, without meaning for zeros
    32 16  build id
    48 16  base build id

Version 2 can tell that it is whole. A row of zeros is one that says so, never one that merely says nothing::

     0  8  "wrennmem"                      80  16 x B  build ids
     8  4  version = 2                      .  24 x N  entries: 8 first block, 4 number of blocks,
    12  4  block size = 4096                           4 build (0 = zeros, n = the n-th id), 8 block in its file
    16  8  memory size in bytes             .      16  BLAKE2b-128 of all before
    24  8  generation
    32 16  build id
    48 16  base build id
    64  4  B, number of build ids
    68  4  0
    72  8  N, number of entries
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from wrenn_sandbox.core import layers
from wrenn_sandbox.core.errors import Bug
from wrenn_sandbox.core.extents import PAGE, Extents, Pages
from wrenn_sandbox.core.layers import Entry, Table, broken

MAGIC = b"wrennmem"
#: No guest memory is larger: numbers of bytes fit int64 whatever a broken file says.
MAX_SIZE = 1 << 48

_HEAD_1 = struct.Struct("<QQQQ16s16s")
_ENTRY_1 = np.dtype([("offset", "<u8"), ("length", "<u8"), ("build", "<u8", 2), ("storage", "<u8")])
_HEAD_2 = struct.Struct("<8sIIQQ16s16sIIQ")
_ENTRY_2 = np.dtype([("first", "<u8"), ("count", "<u4"), ("build", "<u4"), ("storage", "<u8")])
_DIGEST_BYTES = 16
_NIL = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Found:
    """Memory goes on for ``length`` bytes in the file of ``build_id`` at ``storage_offset``, or as zeros (None)."""

    build_id: UUID | None
    storage_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Header:
    """The memory of ``build_id``: ``size`` bytes, ``generation`` captures above ``base_build_id``."""

    size: int
    generation: int
    build_id: UUID
    base_build_id: UUID
    entries: Table

    def __post_init__(self) -> None:
        if self.size != self.entries.pages * PAGE or self.generation < 0:
            raise Bug(f"A header of {self.size} bytes and generation {self.generation} does not fit its entries.")

    @classmethod
    def flat(cls, size: int, build_id: UUID) -> Header:
        """Of a build whose file is the memory, byte by byte."""
        if size <= 0 or size % PAGE or size > MAX_SIZE:
            raise Bug(f"A memory of {size} bytes cannot be.")
        zero, one = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)
        return cls(size, 0, build_id, build_id, layers.table(size // PAGE, zero, one, zero, (build_id,)))

    def extended(self, build_id: UUID, extents: Extents) -> Header:
        """Of the next generation: ``extents`` are its pages, and its file has those not zero, one after another."""
        entries = layers.overlay(self.entries, build_id, extents)
        return Header(self.size, self.generation + 1, build_id, self.base_build_id, entries)

    def lookup(self, offset: int) -> Found:
        """Where the byte at ``offset`` is; raises Bug outside the memory."""
        page = np.array([offset // PAGE], dtype=np.int64)
        entry = self.entries[int(self.entries.row_of(page)[0])]
        shift = offset - entry.offset
        storage = 0 if entry.build_id is None else entry.storage_offset + shift
        return Found(entry.build_id, storage, entry.length - shift)

    def builds(self) -> frozenset[UUID]:
        """The builds whose files are needed to read this memory."""
        return frozenset(self.entries.builds)

    def differing_from(self, flat: UUID) -> Iterator[Entry]:
        """The entries that are not simply the file ``flat`` at the same offset."""
        return self.changed_since(Header.flat(self.size, flat))

    def changed_since(self, other: Header) -> Iterator[Entry]:
        """The entries whose bytes ``other``, of the same size, has from elsewhere."""
        return layers.difference(self.entries, other.entries)

    def to_bytes(self) -> bytes:
        """Version 2."""
        table = self.entries
        head = _HEAD_2.pack(
            MAGIC, 2, PAGE, self.size, self.generation, self.build_id.bytes, self.base_build_id.bytes,
            len(table.builds), 0, len(table),
        )  # fmt: skip
        rows = np.empty(len(table), dtype=_ENTRY_2)
        rows["first"], rows["count"], rows["build"] = table.first, table.count, table.build
        rows["storage"] = table.storage
        content = head + b"".join(b.bytes for b in table.builds) + rows.tobytes()
        return content + _digest(content)


def parse(data: bytes) -> Header:
    """Read either version; raises Unavailable (``build_broken``) for anything that is not one, whole."""
    if data[: len(MAGIC)] == MAGIC:
        return _parse_2(data)
    if data[:8] == (1).to_bytes(8, "little"):
        return _parse_1(data)
    raise broken("its memory header is of no version that is known here")


def _parse_1(data: bytes) -> Header:
    if len(data) < _HEAD_1.size or (len(data) - _HEAD_1.size) % _ENTRY_1.itemsize:
        raise broken("its memory header ends in the middle of an entry")
    _, block, size, generation, build_id, base = _HEAD_1.unpack_from(data)
    pages = _pages(block, size)
    rows = np.frombuffer(data, dtype=_ENTRY_1, offset=_HEAD_1.size)
    ids, build = np.unique(rows["build"].reshape(-1, 2), axis=0, return_inverse=True)
    builds = [UUID(bytes=pair.tobytes()) for pair in ids]
    zeros = builds.index(_NIL) if _NIL in builds else -1
    number = np.array([layers.ZEROS if b == _NIL else i + (i < zeros or zeros < 0) for i, b in enumerate(builds)])
    places = np.where(build == zeros, 0, rows["storage"])  # what stands there for zeros means nothing
    columns = [_blocks(rows["offset"]), _blocks(rows["length"]), number[build].astype(np.int64), _blocks(places)]
    entries = layers.checked(pages, columns, tuple(b for b in builds if b != _NIL))
    return _header(size, generation, build_id, base, entries)


def _parse_2(data: bytes) -> Header:
    if len(data) < _HEAD_2.size + _DIGEST_BYTES or _digest(data[:-_DIGEST_BYTES]) != data[-_DIGEST_BYTES:]:
        raise broken("its memory header is cut short or was changed")
    _, version, block, size, generation, build_id, base, ids, reserved, count = _HEAD_2.unpack_from(data)
    if version != 2 or reserved:
        raise broken(f"its memory header is of version {version}, which is not known here")
    pages = _pages(block, size)
    at = _HEAD_2.size + ids * 16
    if len(data) != at + count * _ENTRY_2.itemsize + _DIGEST_BYTES:
        raise broken("its memory header is not as long as it says")
    builds = tuple(UUID(bytes=data[i : i + 16]) for i in range(_HEAD_2.size, at, 16))
    rows = np.frombuffer(data, dtype=_ENTRY_2, offset=at, count=count)
    if (rows["first"] > MAX_SIZE // PAGE).any() or (rows["storage"] > MAX_SIZE // PAGE).any():
        raise broken("an entry of its header lies outside any file")
    columns = [rows[name].astype(np.int64) for name in ("first", "count", "build", "storage")]
    return _header(size, generation, build_id, base, layers.checked(pages, columns, builds))


def _header(size: int, generation: int, build_id: bytes, base: bytes, entries: Table) -> Header:
    if _NIL.bytes in (build_id, base) or generation >= 1 << 63:
        raise broken("its header does not say of which build it is")
    return Header(size, generation, UUID(bytes=build_id), UUID(bytes=base), entries)


def _blocks(offsets: NDArray[np.uint64]) -> Pages:
    """Bytes, of version 1, as pages."""
    if (offsets % PAGE).any() or (offsets > MAX_SIZE).any():
        raise broken("an entry of its header is not made of whole pages inside any file")
    return (offsets // PAGE).astype(np.int64)


def _pages(block: int, size: int) -> int:
    if block != PAGE:
        raise broken(f"its header counts in blocks of {block} bytes, not {PAGE}")
    if not 0 < size <= MAX_SIZE or size % PAGE:
        raise broken(f"a memory of {size} bytes cannot be")
    return int(size) // PAGE


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
