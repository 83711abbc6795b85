"""Runs the measurements and prints the table of promises: `make bench`, or `python -m tests.bench [--quick]`, and with
``--snapshots`` only what is about those.
"""

from __future__ import annotations

import asyncio
import os
import platform as machine
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import container, floor, product, snapshots
from tests.bench.figures import Row, Series, table
from tests.running import IMAGES_DIR, Platform, platform
from wrenn_sandbox.core.spec import DEFAULT_SHAPE
from wrenn_sandbox.hostagent.host import Base
from wrenn_sandbox.hostagent.templates import load_base
from wrenn_sandbox.image.catalog import Catalog

TRUE = ("true",)
SHELL = ("bash", "-l", "-c", "true")
GIB_IN_MIB = 1024


def main(arguments: list[str]) -> int:
    """Measure everything in one run; the exit code says whether every promise held."""
    quick, everything = "--quick" in arguments, "--snapshots" not in arguments
    times = 5 if quick else 15
    with tempfile.TemporaryDirectory(prefix="wrenn-bench-") as scratch:
        data_dir = Path(scratch) / "data"
        data_dir.mkdir(mode=0o711)
        with platform(data_dir, tag="wbp") as wrenn:
            rows: list[Row] = []
            if everything:
                rows += _first_command(wrenn, Path(scratch), times)
                rows += _exec(wrenn, 20 if quick else 100)
                rows += _many(wrenn, times)
                rows += _streams(wrenn, 128 if quick else GIB_IN_MIB)
            rows += snapshots.rows(wrenn, Path(scratch), _base().directory, times)
    print(f"\n{_heading()}\n\n{table(rows)}")
    return 1 if any(row.held is False for row in rows) else 0


def _heading() -> str:
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        machine.machine(),
    )
    stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{stamp}, {os.cpu_count()} × {processor}, Linux {machine.release()}"


def _first_command(wrenn: Platform, scratch: Path, times: int) -> list[Row]:
    rows = []
    base = _base()
    with container.mounted(Catalog(IMAGES_DIR).rootfs(base.manifest.artefacts.rootfs), scratch / "root") as root:
        for command in (TRUE, SHELL):
            name = " ".join(command)
            bare, ours, creates = Series("floor"), Series("ours"), Series("create")
            phases: list[object] = []
            asyncio.run(_alternate(wrenn, scratch, base.directory, command, times, bare, ours, creates, phases))
            beside = container.start_and_run(root, command, times)
            ratio = ours.p50 / bare.p50
            rows += [
                Row(f"create → `{name}` output, p50, against the floor", f"{ratio:.2f} ×", "≤ 1.3 ×", ratio <= 1.3),
                Row(f"create → `{name}` output, ms", str(ours), "< 1000", ours.p50 < 1000),
                Row("… of which create, ms", str(creates), ""),
                Row("… its phases, last run, ms", _phases(phases), ""),
                Row(f"floor: bare restore, `/init`, `{name}`, ms", str(bare), ""),
                Row(f"bwrap on the same root file system, `{name}`, ms", str(beside), ""),
            ]
            print(f"{name}: ours {ours}; floor {bare}; ratio {ratio:.2f}", flush=True)
    return rows


def _base() -> Base:
    """The template that a sandbox of the default shape is restored from."""
    bases = (load_base(p) for p in (IMAGES_DIR / "bases").iterdir() if not p.name.startswith("."))
    current = Catalog(IMAGES_DIR).current()
    return next(b for b in bases if b.manifest.shape == DEFAULT_SHAPE and b.manifest.artefacts == current)


async def _alternate(
    wrenn: Platform,
    scratch: Path,
    base: Path,
    command: tuple[str, ...],
    times: int,
    bare: Series,
    ours: Series,
    creates: Series,
    phases: list[object],
) -> None:
    async with floor.ready(IMAGES_DIR, base, scratch) as ground:
        for turn in range(times + 2):
            low = await floor.measured(ground, command)
            whole, create, found = await asyncio.to_thread(product.create_and_run, wrenn, command)
            if turn >= 2:
                bare.add(low)
                ours.add(whole)
                creates.add(create)
                phases[:] = found
            await asyncio.sleep(0.5)  # the last machine's end and the pool's refill are not the next one's


def _phases(phases: list[object]) -> str:
    return ", ".join(f"{p['name']} {p['ms']:.0f}" for p in phases if isinstance(p, dict))


def _exec(wrenn: Platform, times: int) -> list[Row]:
    through, straight = product.exec_beside_envd(wrenn, times)
    # Each against its neighbour: the machine's speed wanders by more than the API takes.
    added = statistics.median(ours - bare for ours, bare in zip(through.values, straight.values, strict=True))
    print(f"exec: API {through}; envd {straight}; added {added:.1f}", flush=True)
    return [
        Row("exec of `true`, above envd's own time, p50 of pairs, ms", f"{added:.1f}", "≤ 5", added <= 5),
        Row("exec of `true` through the API, ms", str(through), ""),
        Row("exec of `true` straight at envd, ms", str(straight), ""),
    ]


def _many(wrenn: Platform, times: int) -> list[Row]:
    came, took = product.at_once(wrenn, 20)
    print(f"at once: {came} of 20 in {took:.1f} s", flush=True)
    noticed = max(product.seconds_to_error(wrenn) for _ in range(5))
    print(f"killed VMM: error after {noticed:.2f} s at worst", flush=True)
    rows = [
        Row("20 sandboxes created at once", f"{came} succeed, {took:.1f} s", "20", came == 20),
        Row("kill -9 of a VMM → `error`, worst of 5, s", f"{noticed:.2f}", "≤ 5", noticed <= 5),
    ]
    alone, crowded = Series("beside 1"), Series("beside 40")
    _creates_beside(wrenn, 1, times, alone)
    with product.idle(wrenn, 10) as ten:
        time.sleep(20)
        before, since = [product.cpu_seconds(p) for p in ten], time.monotonic()
        time.sleep(20)
        used = [product.cpu_seconds(p) - b for p, b in zip(ten, before, strict=True)]
        share = 100 * sum(used) / len(used) / (time.monotonic() - since)
        private = [product.private_mib(p) for p in ten]
        _creates_beside(wrenn, 30, 2 * times, crowded)
    _creates_beside(wrenn, 1, times, alone)  # before and after: the machine's own drift is not the crowd's
    ratio = crowded.p50 / alone.p50
    worst = max(private)
    print(f"idle: {worst:.0f} MiB, {share:.2f} % of a core; beside 40: {ratio:.2f}", flush=True)
    megabytes = worst * 1.048576
    return [
        *rows,
        Row("private host memory of an idle sandbox, worst of 10, MB", f"{megabytes:.0f}", "≤ 110", megabytes <= 110),
        Row("CPU of an idle sandbox, % of a core", f"{share:.2f}", ""),
        Row("create beside 40 idle against beside 1", f"{ratio:.2f} ×", "0.8 – 1.2 ×", 0.8 <= ratio <= 1.2),
        Row("create → `true` beside 1 / beside 40, ms", f"{alone} / {crowded}", ""),
    ]


def _creates_beside(wrenn: Platform, count: int, times: int, found: Series) -> None:
    with product.idle(wrenn, count):
        time.sleep(10)
        for _ in range(times):
            found.add(product.create_and_run(wrenn, TRUE)[0])
            time.sleep(0.3)


def _streams(wrenn: Platform, size_mib: int) -> list[Row]:
    sandbox = str(wrenn.create(timeout_sec=0)["id"])
    wrenn.run(sandbox, "true")
    pids = {
        "control plane": wrenn.pid_of("controlplane"),
        "host agent": wrenn.pid_of("hostagent"),
        "client": os.getpid(),
    }
    growth = product.Growth(**pids)
    before = product.envd_rss_mib(wrenn, sandbox)
    up, down = product.stream_up_and_down(wrenn, size_mib, growth, sandbox)
    grown = growth.grown | {"envd": product.envd_rss_mib(wrenn, sandbox) - before}
    wrenn.kill(sandbox)
    text = ", ".join(f"{name} {mib:.0f}" for name, mib in grown.items())
    print(f"stream {size_mib} MiB: up {up:.1f} s, down {down:.1f} s; growth {text}", flush=True)
    return [
        Row(f"growth while {size_mib} MiB go up and down, MiB", text, "< 64 each", max(grown.values()) < 64),
        Row("… speed up / down, MiB/s", f"{size_mib / up:.0f} / {size_mib / down:.0f}", ""),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
