"""What /metrics answers: the guest's CPU, memory and disk, read from /proc when asked."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Jiffies since boot, of all CPUs together."""

    busy: int
    total: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    total: int
    used: int
    cache: int


def parse_stat(text: str) -> CpuTimes:
    """The ``cpu`` line of /proc/stat (proc(5)); idle and iowait are not busy, guest time is inside user time."""
    fields = [int(field) for field in text.split("\n", 1)[0].split()[1:9]]
    total = sum(fields)
    return CpuTimes(busy=total - fields[3] - fields[4], total=total)


def parse_meminfo(text: str) -> Memory:
    """Total, used and cache of /proc/meminfo (proc(5)), which counts in KiB; used is what is not available."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) << 10
    total = values["MemTotal"]
    return Memory(
        total=total,
        used=total - values.get("MemAvailable", values["MemFree"]),
        cache=values["Cached"] + values.get("SReclaimable", 0),
    )


def used_percent(before: CpuTimes, now: CpuTimes) -> float:
    """Share of all CPUs that was busy between two readings, 0 to 100."""
    total = now.total - before.total
    return round(100 * (now.busy - before.busy) / total, 2) if total > 0 else 0.0


class Gauge:
    """Remembers the last CPU reading, so that each answer covers the time since the one before."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._last = CpuTimes(0, 0)

    def read(self) -> dict[str, int | float]:
        """The answer of /metrics; sizes in bytes, ``ts`` in unix seconds."""
        cpu = parse_stat((self._proc / "stat").read_text())
        memory = parse_meminfo((self._proc / "meminfo").read_text())
        disk = os.statvfs("/")
        percent, self._last = used_percent(self._last, cpu), cpu
        return {
            "ts": int(time.time()),
            "cpu_count": os.cpu_count() or 1,
            "cpu_used_pct": percent,
            "mem_total": memory.total,
            "mem_used": memory.used,
            "mem_cache": memory.cache,
            "mem_total_mib": memory.total // _MIB,
            "mem_used_mib": memory.used // _MIB,
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
        }
