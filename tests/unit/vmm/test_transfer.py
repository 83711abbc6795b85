from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.disk.guests import noise
from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.vmm.transfer import Area


def area(content: np.ndarray) -> Area:
    return Area(os.getpid(), content.ctypes.data)


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 39)), max_size=20, unique_by=lambda pair: pair[1]))
def test_pages_land_in_their_rows(pairs: list[tuple[int, int]]) -> None:
    content = noise(30)
    pages, rows = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    found = np.full((40, PAGE), 7, dtype=np.uint8)
    expected = found.copy()
    expected[rows] = content[pages]
    area(content).read(pages, found, rows)
    assert (found == expected).all()


def test_more_runs_than_a_call_takes() -> None:
    content, pages = np.zeros((2500, PAGE), dtype=np.uint8), np.arange(0, 2500, 2, dtype=np.int64)
    written, found = noise(1250), np.empty((1250, PAGE), dtype=np.uint8)
    area(content).write(pages, written)
    assert (content[::2] == written).all()
    assert not content[1::2].any()
    area(content).read(pages, found)
    assert (found == written).all()


def test_rows_outside_the_array_are_refused() -> None:
    content, found = noise(4), np.zeros((2, PAGE), dtype=np.uint8)
    for pages, rows in (([0, 1, 2], None), ([0], [2]), ([0], [-1])):
        with pytest.raises(IndexError):
            area(content).read(
                np.array(pages, dtype=np.int64), found, None if rows is None else np.array(rows, dtype=np.int64)
            )
    assert not found.any()


def test_a_process_that_is_gone_is_said_to_be() -> None:
    nobody = Area(1 << 22, 1 << 32)  # pid_max is never larger
    for call in (nobody.read, nobody.write):
        with pytest.raises(ProcessLookupError):
            call(np.zeros(1, dtype=np.int64), noise(1))


def test_a_file_that_became_too_short_is_an_error_and_no_signal(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(4).tobytes())
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), dtype=np.uint8)
    os.truncate(path, PAGE)
    for pages in ([3], [0, 3]):
        with pytest.raises(OSError) as refused:
            Area(os.getpid(), mapped.ctypes.data).read(np.array(pages, dtype=np.int64), noise(2))
        assert refused.value.errno == errno.EFAULT
