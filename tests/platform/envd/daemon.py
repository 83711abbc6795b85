"""A real envd outside a guest, with socat forwarding to a loopback address of its own, and what it may not leave."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

TOKEN = "tok"
ENTROPY = base64.b64encode(bytes(32)).decode()


@dataclass(frozen=True)
class Daemon:
    """A running envd and a client of it that knows no token."""

    client: httpx.Client
    pid: int
    address: str  # where loopback ports are made reachable

    @property
    def authorized(self) -> dict[str, str]:
        return {"X-Access-Token": TOKEN}

    def init(self, **fields: object) -> httpx.Response:
        body = {"accessToken": TOKEN, "entropy": ENTROPY, **fields}
        return self.client.post("/init", json={k: v for k, v in body.items() if v is not None})

    def prepare(self) -> None:
        answer = self.client.post("/snapshot/prepare")
        assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (204, b"", "no-store")

    def status(self, field: str) -> int:
        """A number of /proc/PID/status."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise AssertionError(field)

    def children(self) -> list[int]:
        """Children of it, zombies included."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == self.pid:
                    found.append(int(entry.name))
        return found

    def forwarders(self) -> list[int]:
        """The socats that listen, without those that handle a connection."""
        return sorted(set(self.children()) & set(self.socats()))

    def socats(self) -> list[int]:
        """Every living process that forwards from its address, connection handlers included."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if f"bind={self.address}," in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
        return found


def eventually(holds: Callable[[], object], what: str) -> None:
    """Wait, with a generous end, until something that must come true is true."""
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError(f"never came true: {what}")


@contextmanager
def own_network() -> Iterator[None]:
    """A network namespace for this thread and what it starts: no other server of this machine is seen or touched."""
    libc, new_network = ctypes.CDLL(None, use_errno=True), 0x40000000  # CLONE_NEWNET, linux/sched.h
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert libc.unshare(new_network) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        libc.setns(home, new_network)
        os.close(home)


@contextmanager
def running(shim: Path, *options: str, wrapper: tuple[str, ...] = (), address: str = "") -> Iterator[Daemon]:
    """envd as a child process, outside a guest unless a ``wrapper`` makes it believe otherwise.

    On leaving it must end by itself and leave nothing that forwards.
    """
    address = address or f"127.{100 + secrets.randbelow(100)}.{secrets.randbelow(250)}.{1 + secrets.randbelow(250)}"
    with tempfile.TemporaryDirectory() as folder:
        ready, log = Path(folder, "ready"), Path(folder, "log")
        command = [*wrapper, sys.executable, "-m", "wrenn_sandbox.envd", "--host", "127.0.0.1", "--port", "0"]
        command += [] if wrapper else ["--not-a-guest"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--forward-address", address, "--ready-file", str(ready), *options],
                env={**os.environ, "WRENN_EXEC_SHIM": str(shim)},
                stdin=subprocess.DEVNULL,
                stderr=output,
            )
        try:
            eventually(lambda: process.poll() is not None or (ready.exists() and ready.read_text()), "envd serves")
            assert process.poll() is None, log.read_text()
            url = f"http://127.0.0.1:{ready.read_text().strip()}"
            headers = {"Accept-Encoding": "identity"}
            with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
                yield Daemon(client, process.pid, address)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            left = Daemon(httpx.Client(), process.pid, address).socats()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert (left, code) == ([], 0), log.read_text()
        assert "Traceback" not in log.read_text()
