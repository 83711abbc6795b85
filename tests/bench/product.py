"""The platform's own times and sizes, through its public API."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx

from tests.bench.figures import Series
from tests.running import Platform
from tests.traces import machines_of

MIB = 1 << 20


def create_and_run(wrenn: Platform, command: tuple[str, ...]) -> tuple[float, float, list[object]]:
    """Milliseconds from the request for a new sandbox to the command's output, those of the create, and its phases."""
    started = time.monotonic()
    made = wrenn.create()
    created = time.monotonic()
    answer = wrenn.run(made["id"], command[0], *command[1:])
    done = time.monotonic()
    wrenn.kill(made["id"])
    assert answer["exit_code"] == 0, answer
    phases = made.get("phases")
    return (done - started) * 1000, (created - started) * 1000, phases if isinstance(phases, list) else []


def at_once(wrenn: Platform, count: int) -> tuple[int, float]:
    """How many of ``count`` sandboxes asked for at once came to be and ran a command, and the seconds it took."""

    def one(_: int) -> str:
        made = str(wrenn.create()["id"])
        assert wrenn.run(made, "true", timeout_sec=120)["exit_code"] == 0
        return made

    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        futures = [threads.submit(one, i) for i in range(count)]
    took = time.monotonic() - started
    made = [f.result() for f in futures if f.exception() is None]
    for sandbox in made:
        wrenn.kill(sandbox)
    return len(made), took


@contextmanager
def idle(wrenn: Platform, count: int) -> Iterator[list[int]]:
    """Pids of the machines of ``count`` sandboxes in which nothing happens."""
    agent = wrenn.pid_of("hostagent")
    before = set(machines_of(agent))
    made = [wrenn.create(timeout_sec=0)["id"] for _ in range(count)]
    try:
        yield sorted(set(machines_of(agent)) - before)
    finally:
        for sandbox in made:
            wrenn.kill(sandbox)


def seconds_to_error(wrenn: Platform) -> float:
    """From the SIGKILL of a sandbox's machine until the API calls the sandbox ``error``."""
    agent = wrenn.pid_of("hostagent")
    before = set(machines_of(agent))
    path = f"/v1/sandboxes/{wrenn.create()['id']}"
    (machine,) = set(machines_of(agent)) - before
    os.kill(machine, signal.SIGKILL)
    started = time.monotonic()
    while wrenn.client.get(path).json()["status"] != "error":
        assert time.monotonic() - started < 60
        time.sleep(0.02)
    return time.monotonic() - started


def private_mib(pid: int) -> float:
    """Memory that only this process has (Private_* of smaps_rollup, proc(5)), MiB."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean", "Private_Dirty")):
            total += int(line.split()[1])
    return total / 1024


def rss_mib(pid: int) -> float:
    """Resident memory, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    """CPU time used so far (utime + stime, proc(5), 100 ticks a second)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def exec_beside_envd(wrenn: Platform, times: int) -> tuple[Series, Series]:
    """Exec of ``true`` on a warm sandbox: through the whole API, and straight to its envd, in turn."""
    through, straight = Series("exec true, API"), Series("exec true, envd")
    made = wrenn.create()
    token, host_ip = _secrets_of(wrenn, str(made["id"]))
    envelope = b'{"process": {"cmd": "true"}, "stdin": false}'
    body = b"\0" + len(envelope).to_bytes(4, "big") + envelope
    headers = {
        "content-type": "application/connect+json",
        "connect-protocol-version": "1",
        "x-access-token": token,
    }
    with httpx.Client(base_url=f"http://{host_ip}:49983", headers=headers, timeout=60) as envd:

        def api() -> None:
            assert wrenn.run(made["id"], "true")["exit_code"] == 0

        def bare() -> None:
            answer = envd.post("/process.Process/Start", content=body)
            assert b"exit status 0" in answer.content, answer.content

        for turn in range(times + 5):
            pair = [(through, api), (straight, bare)]
            for series, ask in pair if turn % 2 else reversed(pair):
                started = time.monotonic()
                ask()
                if turn >= 5:
                    series.add((time.monotonic() - started) * 1000)
    wrenn.kill(made["id"])
    return through, straight


def _secrets_of(wrenn: Platform, sandbox: str) -> tuple[str, str]:
    with contextlib.closing(sqlite3.connect(wrenn.data_dir / "wrenn.db")) as database:
        wanted = UUID(sandbox.removeprefix("sb-")).hex
        for identity, token, host_ip in database.execute("select id, access_token, host_ip from sandboxes"):
            if str(identity).replace("-", "") == wanted:
                return str(token), str(host_ip)
    raise LookupError(sandbox)


class Growth:
    """The largest growth of resident memory of some processes while a context is open, MiB."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._start = {name: rss_mib(pid) for name, pid in pids.items()}
        self.grown = dict.fromkeys(pids, 0.0)

    def __enter__(self) -> Growth:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            for name, pid in self._pids.items():
                self.grown[name] = max(self.grown[name], rss_mib(pid) - self._start[name])


def envd_rss_mib(wrenn: Platform, sandbox: str) -> float:
    """Resident memory of the guest daemon, MiB, as the guest sees it; also the high-water mark since it started."""
    script = (
        "for p in /proc/[0-9]*; do grep -aq wrenn_sandbox.envd $p/cmdline && awk '/VmHWM/ {print $2}' $p/status; done"
    )
    values = wrenn.sh(sandbox, f"{script}; true", user="root").split()
    return max((int(v) / 1024 for v in values), default=0.0)


def stream_up_and_down(wrenn: Platform, size_mib: int, growth: Growth, sandbox: str) -> tuple[float, float]:
    """Seconds to stream a file of ``size_mib`` into the sandbox and out again, in constant memory here."""
    path = f"/v1/sandboxes/{sandbox}/files"
    chunk = b"\xa5" * MIB

    def content() -> Iterator[bytes]:
        for _ in range(size_mib):
            yield chunk

    with growth:
        started = time.monotonic()
        sent = wrenn.client.put(path, params={"path": "/home/user/big"}, content=content(), timeout=None)
        assert sent.is_success, sent.text
        middle = time.monotonic()
        received = 0
        with wrenn.client.stream("GET", path, params={"path": "/home/user/big"}, timeout=None) as answer:
            for part in answer.iter_bytes():
                received += len(part)
        ended = time.monotonic()
    assert received == size_mib * MIB, received
    return middle - started, ended - middle
