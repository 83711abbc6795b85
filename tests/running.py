"""A whole platform for tests and benchmarks: `wrenn up` as a child process, and a small client of its API."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
IMAGES_DIR = Path(os.environ.get("WRENN_IMAGES_DIR", "/var/lib/wrenn/images"))


@dataclass(frozen=True)
class Platform:
    """A running `wrenn up`."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    ready: dict[str, object]
    client: httpx.Client
    tag: str = "wt"

    @property
    def url(self) -> str:
        """Base of the API."""
        return str(self.ready["api_url"])

    def create(self, **body: object) -> dict[str, object]:
        """POST /v1/sandboxes; the sandbox object."""
        answer = self.client.post("/v1/sandboxes", json={"template": "base", **body})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def run(self, sandbox_id: object, cmd: str, *args: str, **body: object) -> dict[str, object]:
        """POST exec; the answer."""
        answer = self.client.post(f"/v1/sandboxes/{sandbox_id}/exec", json={"cmd": cmd, "args": list(args), **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def sh(self, sandbox_id: object, script: str, **body: object) -> str:
        """Output of a shell script that must succeed."""
        answer = self.run(sandbox_id, "/bin/sh", "-c", script, **body)
        assert answer["exit_code"] == 0, answer
        return str(answer["stdout"])

    def kill(self, sandbox_id: object) -> None:
        """DELETE."""
        answer = self.client.delete(f"/v1/sandboxes/{sandbox_id}")
        assert answer.status_code in {204, 404}, answer.text

    def pid_of(self, module: str) -> int:
        """Process id of the host agent or the control plane."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and f"wrenn_sandbox.{module}" in command:
                    return int(entry.name)
        raise LookupError(module)


@contextmanager
def platform(
    data_dir: Path, *, driver: str = "qemu", tag: str = "wt", options: tuple[str, ...] = ()
) -> Iterator[Platform]:
    """A platform in ``data_dir``, ready to serve; stopped with SIGTERM and waited for."""
    ready_file = data_dir / "ready.json"
    command = [
        *(
            sys.executable,
            "-m",
            "wrenn_sandbox.cli",
            "up",
            "--data-dir",
            str(data_dir),
            "--images-dir",
            str(IMAGES_DIR),
        ),
        *("--listen", "127.0.0.1:0", "--driver", driver, "--tag", tag, "--ready-file", str(ready_file), *options),
    ]
    with (data_dir / "up.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        _until(ready_file.exists, process, data_dir)
        ready = json.loads(ready_file.read_text())
        headers = {"X-API-Key": str(ready["api_key"])}
        with httpx.Client(base_url=str(ready["api_url"]), headers=headers, timeout=180) as client:
            yield Platform(process, data_dir, ready, client, tag)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        assert code == 0, _logs(data_dir)


def _until(condition: object, process: subprocess.Popen[bytes], data_dir: Path, limit_s: float = 300) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, _logs(data_dir)
        assert time.monotonic() < deadline, _logs(data_dir)
        time.sleep(0.05)


def _logs(data_dir: Path) -> str:
    texts = []
    for path in (data_dir / "up.log", *sorted((data_dir / "logs").glob("*.log"))):
        with contextlib.suppress(OSError):
            texts.append(f"── {path.name}\n" + path.read_text(errors="replace")[-6000:])
    return "\n".join(texts)
