"""The memory of another process: found, read, patched; and what is said when that process is no more."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.leaks import Footprint
from tests.mapping import mapped
from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.disk import blocks
from wrenn_sandbox.vmm import ram as memory
from wrenn_sandbox.vmm.driver import Patch

pytestmark = pytest.mark.platform
PAGES = 2048


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = Footprint.take()
    yield
    assert Footprint.take().left_behind(before) == {}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(random.Random(0).randbytes(PAGES * PAGE))
    return path


def test_what_a_process_wrote_is_seen_from_outside(base: Path) -> None:
    with mapped(base) as guest:
        ram = memory.locate(guest.pid, base)
        assert ram.size == PAGES * PAGE
        guest.touch(range(100, 200))
        assert memory.private_pages(ram).tolist() == []
        written = sorted({*range(300, 340), *range(500, 2048, 7), 0, 2047})
        guest.fill(written, 0x41)
        assert memory.private_pages(ram).tolist() == written
        found = blocks.empty(len(written))
        memory.read_into(ram, np.array(written, dtype=np.int64), found)
        assert (found == 0x41).all()


def test_a_stopped_process_is_read_all_the_same(base: Path) -> None:
    with mapped(base) as guest:
        ram = memory.locate(guest.pid, base)
        guest.fill([5], 7)
        os.kill(guest.pid, signal.SIGSTOP)
        assert memory.private_pages(ram).tolist() == [5]
        memory.apply(ram, [Patch(6 * PAGE, PAGE, None)])
        os.kill(guest.pid, signal.SIGCONT)
        assert guest.touch([5, 6]) is None
        assert memory.private_pages(ram).tolist() == [5, 6]


def test_another_process_sees_its_patches_and_the_file_does_not(base: Path, tmp_path: Path) -> None:
    rng, content = random.Random(1), bytearray(base.read_bytes())
    source, packed, patches = tmp_path / "packed", b"", []
    for page in sorted(rng.sample(range(PAGES), 700)):
        zero = rng.random() < 0.3
        fresh = bytes(PAGE) if zero else rng.randbytes(PAGE)
        patches.append(Patch(page * PAGE, PAGE, None if zero else source, 0 if zero else len(packed)))
        packed += b"" if zero else fresh
        content[page * PAGE : (page + 1) * PAGE] = fresh
    source.write_bytes(packed)
    before = base.read_bytes()
    with mapped(base) as guest, mapped(base) as sibling:
        rng.shuffle(patches)
        memory.apply(memory.locate(guest.pid, base), patches)
        assert guest.digest() == hashlib.sha256(content).hexdigest()
        assert sibling.digest() == hashlib.sha256(before).hexdigest()
    assert base.read_bytes() == before


def test_a_dead_process_is_never_one_that_changed_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reaped or not, and also when it dies in the very moment."""
    with mapped(base) as guest:
        ram = memory.locate(guest.pid, base)
        guest.fill([1, 2, 3], 1)
        real = memory.scanned

        def dying(pagemap: int, where: memory.Ram) -> object:
            guest.kill()
            return real(pagemap, where)

        monkeypatch.setattr(memory, "scanned", dying)
        with pytest.raises(Unavailable) as refused:
            memory.private_pages(ram)
        assert refused.value.slug == "vmm_gone"
        monkeypatch.setattr(memory, "scanned", lambda *_: None)  # an older kernel
        with pytest.raises(Unavailable) as refused:
            memory.private_pages(ram)
        assert refused.value.slug == "vmm_gone"
        with pytest.raises(Unavailable) as refused:
            memory.locate(guest.pid, base)
        assert refused.value.slug == "vmm_gone"
    with pytest.raises(Unavailable) as refused:
        memory.locate(guest.pid, base)
    assert refused.value.slug == "vmm_gone"
