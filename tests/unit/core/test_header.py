from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrenn_sandbox.core.errors import Bug, Unavailable
from wrenn_sandbox.core.extents import PAGE, Extent, Extents, runs
from wrenn_sandbox.core.header import MAX_SIZE, Found, Header, parse
from wrenn_sandbox.core.layers import Entry

BUILD = UUID("11111111-2222-4333-8444-555555555555")
NEXT = UUID("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")
#: D Z D D Z, as the original writes it: zeros carry the running total of zeros.
VECTOR_1 = bytes.fromhex(
    "0100000000000000 0010000000000000 0050000000000000 0000000000000000"
    "11111111222243338444555555555555 11111111222243338444555555555555"
    "0000000000000000 0010000000000000 11111111222243338444555555555555 0000000000000000"
    "0010000000000000 0010000000000000 00000000000000000000000000000000 0000000000000000"
    "0020000000000000 0020000000000000 11111111222243338444555555555555 0010000000000000"
    "0040000000000000 0010000000000000 00000000000000000000000000000000 0010000000000000"
)
ENTRIES = [
    Entry(0, PAGE, BUILD, 0),
    Entry(PAGE, PAGE, None, 0),
    Entry(2 * PAGE, 2 * PAGE, BUILD, PAGE),
    Entry(4 * PAGE, PAGE, None, 0),
]
#: The same in version 2, without its checksum.
VECTOR_2 = bytes.fromhex(
    "7772656e6e6d656d 02000000 00100000 0050000000000000 0000000000000000"
    "11111111222243338444555555555555 11111111222243338444555555555555"
    "01000000 00000000 0400000000000000"
    "11111111222243338444555555555555"
    "0000000000000000 01000000 01000000 0000000000000000"
    "0100000000000000 01000000 00000000 0000000000000000"
    "0200000000000000 02000000 01000000 0100000000000000"
    "0400000000000000 01000000 00000000 0000000000000000"
)


def sealed(content: bytes) -> bytes:
    return content + hashlib.blake2b(content, digest_size=16).digest()


def refused(data: bytes) -> str:
    with pytest.raises(Unavailable) as error:
        parse(data)
    assert error.value.slug == "build_broken"
    return error.value.message


def test_the_vector_of_version_1() -> None:
    header = parse(VECTOR_1)
    assert (header.size, header.generation, header.build_id, header.base_build_id) == (5 * PAGE, 0, BUILD, BUILD)
    assert list(header.entries) == ENTRIES
    assert header.builds() == {BUILD}


def test_the_vector_of_version_2() -> None:
    assert parse(VECTOR_1).to_bytes() == sealed(VECTOR_2)
    assert parse(sealed(VECTOR_2)) == parse(VECTOR_1)


def test_where_zeros_are_said_to_be_stored_means_nothing() -> None:
    noisy = bytearray(VECTOR_1)
    for entry in (1, 3):
        noisy[64 + 40 * entry + 32 : 64 + 40 * entry + 40] = b"\xff" * 8
    assert parse(bytes(noisy)) == parse(VECTOR_1)


def test_neighbours_that_do_not_follow_each_other_in_their_file_stay_apart() -> None:
    moved = bytearray(VECTOR_1[:64])
    for offset, storage in ((0, 0), (1, 1), (2, 4), (3, 3), (4, 4)):
        moved += struct.pack("<QQ", offset * PAGE, PAGE) + BUILD.bytes + struct.pack("<Q", storage * PAGE)
    assert [(e.offset // PAGE, e.length // PAGE, e.storage_offset // PAGE) for e in parse(bytes(moved)).entries] == [
        (0, 2, 0), (2, 1, 4), (3, 2, 3),
    ]  # fmt: skip


def test_lookup_goes_to_the_end_of_the_piece() -> None:
    header = parse(VECTOR_1)
    assert header.lookup(0) == Found(BUILD, 0, PAGE)
    assert header.lookup(PAGE + 7) == Found(None, 0, PAGE - 7)
    assert header.lookup(3 * PAGE + 100) == Found(BUILD, 2 * PAGE + 100, PAGE - 100)
    assert header.lookup(5 * PAGE - 1) == Found(None, 0, 1)
    for outside in (-1, 5 * PAGE, 1 << 62):
        with pytest.raises(Bug):
            header.lookup(outside)


def test_a_flat_file_is_itself() -> None:
    header = Header.flat(8 << 30, BUILD)
    assert header.lookup(5 << 30) == Found(BUILD, 5 << 30, 3 << 30)
    assert list(header.differing_from(BUILD)) == []
    assert list(header.differing_from(NEXT)) == [Entry(0, 8 << 30, BUILD, 0)]
    for size in (0, -PAGE, PAGE + 1, MAX_SIZE + PAGE):
        with pytest.raises(Bug):
            Header.flat(size, BUILD)


def test_the_next_generation_says_what_differs_from_the_flat_file_below() -> None:
    header = Header.flat(6 * PAGE, BUILD).extended(NEXT, Extents.of([Extent(1, 2), Extent(4, 1, zero=True)]))
    assert (header.generation, header.build_id, header.base_build_id) == (1, NEXT, BUILD)
    assert list(header.differing_from(BUILD)) == [Entry(PAGE, 2 * PAGE, NEXT, 0), Entry(4 * PAGE, PAGE, None, 0)]
    again = header.extended(UUID(int=7), Extents.of([Extent(2, 1)]))
    assert list(again.changed_since(header)) == [Entry(2 * PAGE, PAGE, UUID(int=7), 0)]
    assert list(again.differing_from(BUILD)) == [
        Entry(PAGE, PAGE, NEXT, 0), Entry(2 * PAGE, PAGE, UUID(int=7), 0), Entry(4 * PAGE, PAGE, None, 0),
    ]  # fmt: skip


def test_ten_generations_in_which_pages_change_repeat_and_become_zero() -> None:
    """Bytes, not only names: files as the capture writes them, read back through the header alone."""
    pages, rng = 200, random.Random(5)
    memory = [rng.randbytes(4) for _ in range(pages)]  # a page is four bytes here
    files = {BUILD: list(memory)}
    header = Header.flat(pages * PAGE, BUILD)
    history = [(header, list(memory))]
    for generation in range(1, 11):
        before = list(memory)
        for _ in range(40):
            page = rng.randrange(pages)
            old = rng.choice(history)[1][page]
            memory[page] = rng.choice([rng.randbytes(4), old, bytes(4), bytes(4)])
        changed = [i for i in range(pages) if memory[i] != before[i]]
        zero = np.array([memory[i] == bytes(4) for i in changed], dtype=np.bool_)
        build_id = UUID(int=generation << 8)
        files[build_id] = [memory[i] for i in changed if memory[i] != bytes(4)]
        header = parse(header.extended(build_id, runs(np.array(changed, dtype=np.int64), zero)).to_bytes())
        history.append((header, list(memory)))
    for generation, (then, expected) in enumerate(history):
        assert then.generation == generation
        found = [then.lookup(i * PAGE) for i in range(pages)]
        content = [bytes(4) if f.build_id is None else files[f.build_id][f.storage_offset // PAGE] for f in found]
        assert content == expected
        assert {f.build_id for f in found} - {None} == then.builds()


@given(st.integers(0, len(sealed(VECTOR_2)) * 8 - 1))
def test_every_flipped_bit_of_version_2_is_seen(bit: int) -> None:
    data = bytearray(sealed(VECTOR_2))
    data[bit // 8] ^= 1 << bit % 8
    refused(bytes(data))


@pytest.mark.parametrize("vector", [VECTOR_1, sealed(VECTOR_2)], ids=["1", "2"])
def test_a_header_that_is_cut_or_has_a_tail_is_refused(vector: bytes) -> None:
    for length in range(len(vector)):
        refused(vector[:length])
    refused(vector + b"\0")
    refused(vector + bytes(40))


def put(offset: int, form: str, *values: object) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        copy = bytearray(data)
        struct.pack_into(form, copy, offset, *values)
        return bytes(copy)

    return changed


@pytest.mark.parametrize(
    "change",
    [
        put(0, "<Q", 3),
        put(8, "<Q", 512),
        put(16, "<Q", 0),
        put(16, "<Q", 6 * PAGE),
        put(16, "<Q", 5 * PAGE - 1),
        put(16, "<Q", 1 << 63),
        put(24, "<Q", 1 << 63),
        put(32, "<QQ", 0, 0),
        put(48, "<QQ", 0, 0),
        put(64, "<Q", PAGE),
        put(64, "<Q", 1),
        put(64 + 8, "<Q", 0),
        put(64 + 8, "<Q", 2 * PAGE),
        put(64 + 8, "<Q", 100),
        put(64 + 32, "<Q", 7),
        put(64 + 32, "<Q", 1 << 63),
        put(64 + 40, "<Q", 1 << 63),
        put(64 + 120 + 8, "<Q", (1 << 64) - PAGE),
    ],
)
def test_broken_bytes_of_version_1_are_refused(change: Callable[[bytes], bytes]) -> None:
    refused(change(VECTOR_1))


@pytest.mark.parametrize(
    "change",
    [
        put(8, "<I", 3),
        put(12, "<I", 512),
        put(16, "<Q", 0),
        put(16, "<Q", 6 * PAGE),
        put(16, "<Q", 1 << 63),
        put(24, "<Q", 1 << 63),
        put(32, "<QQ", 0, 0),
        put(48, "<QQ", 0, 0),
        put(64, "<I", 0),
        put(64, "<I", 2),
        put(64, "<I", 0xFFFFFFFF),
        put(68, "<I", 1),
        put(72, "<Q", 3),
        put(72, "<Q", (1 << 64) - 1),
        put(80, "<QQ", 0, 0),
        put(96, "<Q", 1),
        put(96, "<Q", 1 << 63),
        put(96 + 8, "<I", 0),
        put(96 + 8, "<I", 2),
        put(96 + 12, "<I", 2),
        put(96 + 16, "<Q", 1 << 63),
    ],
)
def test_broken_fields_of_version_2_are_refused_though_the_checksum_is_right(change: Callable[[bytes], bytes]) -> None:
    refused(sealed(change(VECTOR_2)))


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"wrennmem", b"QFI\xfb" + bytes(200), bytes(224)])
def test_what_is_no_header_is_refused(data: bytes) -> None:
    refused(data)


def test_a_size_that_does_not_fit_the_entries_is_a_bug() -> None:
    with pytest.raises(Bug):
        Header(PAGE, 0, BUILD, BUILD, Header.flat(2 * PAGE, BUILD).entries)
