"""What pause, resume, snapshot and fork cost, beside the bare cost of the same on the same machine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np

from tests.bench import agent, floor, product
from tests.bench.figures import Row, Series
from tests.running import IMAGES_DIR, Platform
from tests.traces import machines_of
from wrenn_sandbox.core.extents import PAGE
from wrenn_sandbox.disk import blocks
from wrenn_sandbox.disk.build import HEADER, MEMORY
from wrenn_sandbox.disk.store import BuildStore
from wrenn_sandbox.image.catalog import Catalog

MIB = 1 << 20
_LIMIT_MS = 60.0
_CHUNK_PAGES = 4096


def rows(wrenn: Platform, scratch: Path, base: Path, times: int) -> list[Row]:
    """The table's rows about snapshots."""
    found = [*_captures(wrenn, scratch, base, times)]
    found += _big_capture(wrenn)
    found += _resumes(wrenn, times)
    found += _forks(wrenn, times)
    found += _clones(wrenn)
    return found


def dirty(mib: int) -> tuple[str, ...]:
    """A command that changes about so much of the guest's memory."""
    return ("sh", "-c", f"head -c {mib}M /dev/urandom >/dev/shm/changed")


@contextmanager
def _sandbox(wrenn: Platform) -> Iterator[str]:
    made = str(wrenn.create(timeout_sec=0)["id"])
    try:
        yield made
    finally:
        wrenn.kill(made)


def _captures(wrenn: Platform, scratch: Path, base: Path, times: int) -> list[Row]:
    captured, stopped, durable, bare = Series("captured"), Series("stopped"), Series("durable"), Series("bare")
    written: list[int] = []
    more = Series("bytes written against bytes changed")
    with _sandbox(wrenn) as sandbox:
        templates, last = [], None
        for turn in range(times + 1):
            wrenn.run(sandbox, *dirty(5))
            time.sleep(0.3)
            found, template = agent.snapshot(wrenn, sandbox)
            templates.append(template)
            if turn:
                captured.add(found.captured_ms)
                stopped.add(found.stopped_ms)
                durable.add(found.durable_ms)
                written.append(found.size_bytes)
            if last is not None and turn <= 3:  # reading both memories whole takes a while
                more.add(_written_against_changed(wrenn, last, found))
            last = found
        for template in templates:
            agent.forget(wrenn, template)
    size = sorted(written)[len(written) // 2]
    for value in asyncio.run(_bare(scratch, base, size, times)):
        bare.add(value)
    ratio, worst = captured.p50 / bare.p50, max(more.values)
    print(f"capture of {size / 1e6:.1f} MB: {captured}; bare {bare}; durable {durable}", flush=True)
    return [
        Row("captured with 5 MB changed, against the bare cost", f"{ratio:.2f} ×", "≤ 3 ×", ratio <= 3),
        Row("captured with 5 MB changed, ms", str(captured), "< 60", captured.p50 < _LIMIT_MS),
        Row("… durable, ms", str(durable), ""),
        Row("… the machine stood still, ms", str(stopped), "< 50", stopped.p50 < 50),
        Row("… bytes of memory written against bytes changed, worst", f"{worst:.3f} ×", "≤ 1.1 ×", worst <= 1.1),
        Row("… a build's size on disk, with what its files changed, MB", f"{size / 1e6:.1f}", ""),
        Row("bare stop, device state, copy of as many bytes, ms", str(bare), ""),
    ]


def _written_against_changed(wrenn: Platform, before: agent.Moment, after: agent.Moment) -> float:
    """Bytes of device state, header and pages of a build, against those that differ between the two whole memories."""
    store = BuildStore(wrenn.data_dir, Catalog(IMAGES_DIR))
    old, new = store.get(UUID(before.build_id)), store.get(UUID(after.build_id))
    changed = 0
    with old.source() as one, new.source() as other:
        ours, theirs = blocks.empty(_CHUNK_PAGES), blocks.empty(_CHUNK_PAGES)
        for first in range(0, one.header.size // PAGE, _CHUNK_PAGES):
            pages = np.arange(first, first + _CHUNK_PAGES, dtype=np.int64)
            one.gather(pages, ours)
            other.gather(pages, theirs)
            changed += int((ours != theirs).any(axis=1).sum()) * PAGE
    files = (new.state, new.directory / MEMORY, new.directory / HEADER)
    return sum(path.stat().st_size for path in files) / changed


async def _bare(scratch: Path, base: Path, size: int, times: int) -> list[float]:
    async with floor.ready(IMAGES_DIR, base, scratch) as ground:
        return [await asyncio.to_thread(ground.capture, dirty(5), size) for _ in range(times)]


def _big_capture(wrenn: Platform) -> list[Row]:
    rates, slow = Series("rate"), Series("old")
    with _sandbox(wrenn) as sandbox:
        templates = []
        for _ in range(4):
            wrenn.run(sandbox, *dirty(100), timeout_sec=120)
            time.sleep(1)
            found, template = agent.snapshot(wrenn, sandbox)
            templates.append(template)
            rates.add(found.size_bytes / 1e6 / found.captured_ms)
        wrenn.run(sandbox, "sh", "-c", "head -c 100M /dev/urandom >/dev/shm/more", timeout_sec=120)
        templates.append(agent.snapshot(wrenn, sandbox)[1])
        for _ in range(4):
            wrenn.run(sandbox, "sh", "-c", "head -c 5M /dev/urandom >/dev/shm/little")
            time.sleep(0.3)
            found, template = agent.snapshot(wrenn, sandbox)
            templates.append(template)
            slow.add(found.captured_ms)
        for template in templates:
            agent.forget(wrenn, template)
    print(f"100 MB: {rates} GB/s; 5 MB on 200 MB: {slow} ms", flush=True)
    return [
        Row("captured with 100 MB changed, GB/s into the page cache", f"{rates.p50:.2f}", "≥ 1", rates.p50 >= 1),
        Row("captured with 5 MB new on 200 MB old, ms", str(slow), ""),
    ]


def _resumes(wrenn: Platform, times: int) -> list[Row]:
    template, small, large = Series("template"), Series("resume"), Series("large")
    with _sandbox(wrenn) as much:
        wrenn.run(much, *dirty(50))
        for _ in range(times):  # in turn: the machine's speed wanders by more than 42 MB cost
            template.add(product.create_and_run(wrenn, ("true",))[1])
            large.add(_pause_and_resume(wrenn, much))
            with _sandbox(wrenn) as little:
                wrenn.run(little, *dirty(8))
                small.add(_pause_and_resume(wrenn, little))
    ratio, more = small.p50 / template.p50, (large.p50 - small.p50) / (50 - 8)
    print(f"resume: {small}; template {template}; 50 MB {large}", flush=True)
    return [
        Row("resume with ≤ 16 MB changed, against a template's restore", f"{ratio:.2f} ×", "≤ 1.3 ×", ratio <= 1.3),
        Row("resume / template, ms", f"{small} / {template}", ""),
        Row("resume, for each MB more, ms", f"{more:.2f}", "≤ 1.5", more <= 1.5),
    ]


def _pause_and_resume(wrenn: Platform, sandbox: str) -> float:
    path = f"/v1/sandboxes/{sandbox}"
    assert wrenn.client.post(f"{path}/pause").status_code == 200
    started = time.monotonic()
    answer = wrenn.client.post(f"{path}/resume")
    assert answer.status_code == 200, answer.text
    return (time.monotonic() - started) * 1000


def _forks(wrenn: Platform, times: int) -> list[Row]:
    one, ten, still = Series("create"), Series("fork of 10"), Series("stopped")
    with _sandbox(wrenn) as sandbox:
        for _ in range(max(3, times // 3)):
            one.add(product.create_and_run(wrenn, ("true",))[1])
            wrenn.run(sandbox, *dirty(5))
            children = [_child() for _ in range(10)]
            started = time.monotonic()
            body = {"sandboxId": sandbox, "buildId": str(uuid4()), "children": children}
            answer = agent.call(wrenn, "ForkSandbox", body)
            ten.add((time.monotonic() - started) * 1000)
            still.add(agent.moment(answer["build"]).stopped_ms)
            for child in children:
                agent.call(wrenn, "DestroySandbox", {"sandboxId": child["sandboxId"]})
    ratio = ten.p50 / one.p50
    print(f"fork of 10: {ten}; create {one}; stopped {still}", flush=True)
    return [
        Row("fork of 10, against one create", f"{ratio:.1f} ×", "≤ 8 ×", ratio <= 8),
        Row("fork: the source stood still, ms", str(still), "< 50", still.p50 < 50),
    ]


def _child() -> dict[str, object]:
    return {"sandboxId": f"sb-{uuid4()}", "accessToken": uuid4().hex, "lifetime": {}}


def _clones(wrenn: Platform) -> list[Row]:
    with _sandbox(wrenn) as sandbox:
        wrenn.sh(sandbox, "sudo mount -o remount,size=400M /dev/shm")
        wrenn.run(sandbox, *dirty(300), timeout_sec=300)
        _, template = agent.snapshot(wrenn, sandbox)
    build = next(b for b in _builds(wrenn) if f"tpl-{template}" in b["holders"])
    machines = set(machines_of(wrenn.pid_of("hostagent")))
    clones = [{**_child(), "buildId": build["buildId"]} for _ in range(10)]
    try:
        for clone in clones:
            agent.call(wrenn, "CreateSandbox", clone)
        born = set(machines_of(wrenn.pid_of("hostagent"))) - machines
        private = max(_private_ram_mb(pid) for pid in born)
    finally:
        for clone in clones:
            agent.call(wrenn, "DestroySandbox", {"sandboxId": clone["sandboxId"]})
        agent.forget(wrenn, template)
    print(f"clones of 300 MB: {private:.1f} MB private", flush=True)
    return [
        Row("private guest RAM of a clone, 300 MB changed, worst of 10, MB", f"{private:.1f}", "< 20", private < 20)
    ]


def _builds(wrenn: Platform) -> list[dict[str, object]]:
    found = agent.call(wrenn, "ListBuilds", {}).get("builds", [])
    assert isinstance(found, list)
    return found


def _private_ram_mb(pid: int) -> float:
    """Private part of the largest mapping of a machine, its RAM (smaps of proc_pid_smaps(5)), MB."""
    best, size, private = (0, 0.0), 0, 0.0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if line.startswith("Size:"):
                size, private = int(line.split()[1]), 0.0
            elif line.startswith("Private_"):
                private += int(line.split()[1]) * 1024 / 1e6
                best = max(best, (size, private))
    return best[1]
