"""The floor: a bare QEMU, without jail, pool, API or agent, restores the same snapshot; `/init` and the command follow.

Network and overlay are ready before the clock starts, as nothing could be faster than that.
"""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.spec import NetworkPolicy
from wrenn_sandbox.disk import overlay
from wrenn_sandbox.hostagent.templates import load_base
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.net.pool import NamespacePool, PoolOptions
from wrenn_sandbox.vmm.driver import MachineFiles, MachineSpec
from wrenn_sandbox.vmm.process import start
from wrenn_sandbox.vmm.qemu import argv
from wrenn_sandbox.vmm.qemu.argv import Mode
from wrenn_sandbox.vmm.ram import locate, private_pages


@dataclass(frozen=True)
class Floor:
    """Everything the bare restore needs."""

    images: Path
    base: Path
    scratch: Path
    tap_fd: int
    host_ip: str

    def restore_and_run(self, command: tuple[str, ...]) -> float:
        """Milliseconds from starting QEMU to the end of the command's output."""
        with self._machine() as (_, started):
            _run(self.host_ip, command)
            return (time.monotonic() - started) * 1000

    def capture(self, command: tuple[str, ...], size: int) -> float:
        """Milliseconds to stop a machine that ran ``command``, save its state and copy ``size`` bytes of its RAM."""
        with self._machine() as (pid, _):
            _run(self.host_ip, command)
            ram = locate(pid, self.base / "memory")
            pages = private_pages(ram)[: -(-size // PAGE)]
            time.sleep(0.3)
            with socket.socket(socket.AF_UNIX) as monitor, (self.scratch / "layer").open("wb", buffering=0) as layer:
                lines = _connected(self.scratch / "qmp", monitor)
                memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
                started = time.monotonic()
                _command(lines, {"execute": "stop"})
                save = {"filename": str(self.scratch / "saved"), "live": False}
                _command(lines, {"execute": "xen-save-devices-state", "arguments": save})
                for first, count in _runs(pages.tolist()):
                    layer.write(os.pread(memory, count * PAGE, ram.address + first * PAGE))
                took = (time.monotonic() - started) * 1000
                os.close(memory)
            (self.scratch / "layer").unlink()
            (self.scratch / "saved").unlink()
            return took

    @contextmanager
    def _machine(self) -> Iterator[tuple[int, float]]:
        """A restored guest with its identity: its pid, and when QEMU was started."""
        spec = self._spec()
        with _listening(self.scratch) as server, _opened(self.base / "state") as state:
            words = _outside(spec)
            started = time.monotonic()
            fds = {argv.QMP_FD: server.fileno(), argv.TAP_FD: self.tap_fd, argv.STATE_FD: state}
            pid = start(words, fds=fds, env={})
            try:
                _load(self.scratch / "qmp")
                _initialise(self.host_ip)
                yield pid, started
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                spec.files.disk.unlink()

    def _spec(self) -> MachineSpec:
        catalog, base = Catalog(self.images), load_base(self.base)
        artefacts = base.manifest.artefacts
        disk = self.scratch / "disk.qcow2"
        overlay.create(disk, base.disk, "qcow2")
        return MachineSpec(
            name="floor",
            shape=base.manifest.shape,
            platform=base.manifest.platform,
            files=MachineFiles(
                runtime=catalog.runtime(artefacts.runtime),
                kernel=catalog.kernel(artefacts.kernel),
                initramfs=catalog.initramfs(artefacts.initramfs),
                tools=catalog.tools(artefacts.tools),
                disk=disk,
                backing=(base.disk, catalog.rootfs(artefacts.rootfs)),
                memory=base.memory,
            ),
            run_dir=self.scratch,
            uid=0,
            gid=0,
            tap_fd=self.tap_fd,
            host_ip=self.host_ip,
        )


TOKEN = "floor-token"
PAGE = 4096


@asynccontextmanager
async def ready(images: Path, base: Path, scratch: Path) -> AsyncIterator[Floor]:
    """A floor with its own network slot."""
    async with NamespacePool(PoolOptions(tag="wbf", warm=1)) as pool, pool.link(NetworkPolicy()) as link:
        assert link.tap_fd is not None
        yield Floor(images, base, scratch, link.tap_fd, link.slot.host_ip)


def _outside(spec: MachineSpec) -> tuple[str, ...]:
    """The jailed machine's own command line, with the host's paths in place of the jail's."""
    names = sorted(((f.name, str(f.source)) for f in argv.jail_files(spec, Mode.RESTORE)), key=lambda n: -len(n[0]))

    def rewritten(word: str) -> str:
        for name, source in names:
            for before in ("", "mem-path=", '"filename": "'):
                word = f"{source}{word[len(name) :]}" if not before and word.startswith(name) else word
                word = word.replace(before + name, before + source) if before else word
        return word

    return tuple(rewritten(word) for word in argv.build(spec, Mode.RESTORE))


@contextmanager
def _listening(scratch: Path) -> Iterator[socket.socket]:
    path = scratch / "qmp"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        yield server
    path.unlink()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _load(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as monitor:
        lines = _connected(path, monitor)
        incoming = {"uri": f"file:/dev/fdset/{argv.STATE_FDSET}"}
        _command(lines, {"execute": "migrate-incoming", "arguments": incoming})
        while _command(lines, {"execute": "query-status"})["status"] == "inmigrate":
            time.sleep(0.001)
        _command(lines, {"execute": "cont"})


def _connected(path: Path, monitor: socket.socket) -> object:
    monitor.connect(str(path))
    lines = monitor.makefile("rw")
    lines.readline()
    _command(lines, {"execute": "qmp_capabilities"})
    return lines


def _runs(pages: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbours as first page and count."""
    first = previous = None
    for page in pages:
        if first is None:
            first = page
        elif page != previous + 1:
            yield first, previous - first + 1
            first = page
        previous = page
    if first is not None:
        yield first, previous - first + 1


def _command(lines: object, command: dict[str, object]) -> dict[str, object]:
    lines.write(json.dumps(command) + "\n")  # type: ignore[attr-defined]
    lines.flush()  # type: ignore[attr-defined]
    while True:
        answer = json.loads(lines.readline())  # type: ignore[attr-defined]
        assert "error" not in answer, answer
        if "return" in answer:
            return answer["return"]


def _initialise(host_ip: str) -> None:
    identity = SandboxId(UUID(bytes=secrets.token_bytes(16), version=4))
    body = {
        "sandboxId": str(identity),
        "templateId": "",
        "accessToken": TOKEN,
        "machineId": identity.value.hex,
        "entropy": base64.b64encode(secrets.token_bytes(64)).decode(),
        "envVars": {},
    }
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(ConnectionError, TimeoutError):
            status, text = _post(host_ip, "/init", json.dumps(body).encode(), {"content-type": "application/json"})
            assert status == 204, text
            return
        assert time.monotonic() < deadline


def _run(host_ip: str, command: tuple[str, ...]) -> None:
    message = json.dumps({"process": {"cmd": command[0], "args": command[1:]}, "stdin": False}).encode()
    headers = {
        "content-type": "application/connect+json",
        "connect-protocol-version": "1",
        "x-access-token": TOKEN,
    }
    status, text = _post(
        host_ip,
        "/process.Process/Start",
        array.array("B", [0]).tobytes() + len(message).to_bytes(4, "big") + message,
        headers,
    )
    assert status == 200, text
    assert b"exit status 0" in text, text


def _post(host_ip: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host_ip, 49983, timeout=20)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


async def measured(floor: Floor, command: tuple[str, ...]) -> float:
    """One measurement, off the event loop: the pool's services in the namespace go on."""
    return await asyncio.to_thread(floor.restore_and_run, command)
