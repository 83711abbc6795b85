from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.disk.guests import noise
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.disk import blocks


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 19)), max_size=12, unique_by=lambda pair: pair[1]))
def test_blocks_land_in_their_rows(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]]) -> None:
    content = noise(16)
    path = tmp_path_factory.mktemp("blocks") / "file"
    path.write_bytes(content.tobytes())
    numbers, rows = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    expected = np.full((20, 4096), 7, dtype=np.uint8)
    out = expected.copy()
    expected[rows] = content[numbers]
    with path.open("rb") as file:
        blocks.read(file.fileno(), numbers, out, rows)
    assert (out == expected).all()


def test_neighbours_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(16).tobytes())
    lengths = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: lengths.append(len(into[0])) or real(fd, into, at))
    with path.open("rb") as file:
        blocks.read(file.fileno(), np.array([3, 4, 5, 9, 8], dtype=np.int64), blocks.empty(5))
    assert lengths == [3 * 4096, 4096, 4096]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    content, numbers = noise(5), np.array([9, 2, 3, 4, 0], dtype=np.int64)
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        blocks.write(file.fileno(), numbers, content)
        found = blocks.empty(5)
        blocks.read(file.fileno(), numbers, found)
        assert (found == content).all()
        blocks.write(file.fileno(), numbers[:0], content)
    assert (tmp_path / "file").stat().st_size == 10 * 4096


@pytest.mark.parametrize("missing", [1, 4096, 5000])
def test_a_file_that_ends_too_early_is_a_broken_build(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(4).tobytes()[:-missing])
    with path.open("rb") as file, pytest.raises(Unavailable) as refused:
        blocks.read(file.fileno(), np.arange(4, dtype=np.int64), blocks.empty(4))
    assert refused.value.slug == "build_broken"


def test_short_transfers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = noise(3)
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: read(fd, [into[0][:1000]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: write(fd, part[:999], at))
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        blocks.write(file.fileno(), np.arange(3, dtype=np.int64), content)
        found = blocks.empty(3)
        blocks.read(file.fileno(), np.arange(3, dtype=np.int64), found)
    assert (found == content).all()
