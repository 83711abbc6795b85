from __future__ import annotations

from pathlib import Path

from wrenn_sandbox.envd.metrics import CpuTimes, Gauge, Memory, parse_meminfo, parse_stat, used_percent

STAT = "cpu  100 5 50 800 40 3 2 0 70 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
MEMINFO = """MemTotal:        1000 kB
MemFree:          100 kB
MemAvailable:     400 kB
Cached:           250 kB
SReclaimable:      50 kB
HugePages_Total:       0
"""


def test_cpu_line() -> None:
    assert parse_stat(STAT) == CpuTimes(busy=160, total=1000)


def test_meminfo_is_in_bytes() -> None:
    assert parse_meminfo(MEMINFO) == Memory(total=1000 << 10, used=600 << 10, cache=300 << 10)


def test_share_between_two_readings() -> None:
    assert used_percent(CpuTimes(100, 1000), CpuTimes(150, 1200)) == 25.0
    assert used_percent(CpuTimes(100, 1000), CpuTimes(100, 1000)) == 0.0


def test_gauge_covers_the_time_since_the_last_answer(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "meminfo").write_text(MEMINFO)
    gauge = Gauge(tmp_path)
    first, second = gauge.read(), gauge.read()
    assert first["cpu_used_pct"] == 16.0
    assert second["cpu_used_pct"] == 0.0
    assert set(first) == {
        *("ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache"),
        *("mem_total_mib", "mem_used_mib", "disk_used", "disk_total"),
    }
    assert first["mem_used"] == 600 << 10
