"""The guest artefacts by themselves: real boots under plain QEMU, without jail, host agent or snapshot."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.leaks import Footprint
from tests.running import IMAGES_DIR
from wrenn_sandbox.core.slots import ENVD_PORT, GATEWAY_IP, GUEST_IP, GUEST_MAC
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.image.rootfs import format_ext4
from wrenn_sandbox.image.runtime import Runtime
from wrenn_sandbox.vmm.qemu.tsc import host_tsc_khz

pytestmark = pytest.mark.machine

BOOT_LIMIT_S = 240  # an emulated boot beside other work; it takes 6 s alone
TOKEN = "token-of-the-test"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = Footprint.take().of()
    yield
    assert Footprint.take().of().left_behind(before) == {}


@dataclass
class Guest:
    """A booting or booted machine."""

    process: subprocess.Popen[bytes]
    console_log: Path
    url: str

    @property
    def console(self) -> str:
        return self.console_log.read_text(errors="replace")

    def until_healthy(self) -> None:
        deadline = time.monotonic() + BOOT_LIMIT_S
        while True:
            assert self.process.poll() is None, self.console
            assert time.monotonic() < deadline, self.console
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return
            time.sleep(0.2)

    def init(self) -> None:
        body = {
            "accessToken": TOKEN,
            "timestamp": "2026-01-01T00:00:00Z",
            "entropy": base64.b64encode(os.urandom(32)).decode(),
            "machineId": "0123456789abcdef" * 2,
            "sandboxId": "sb-test",
            "templateId": "base",
            "envVars": {},
        }
        answer = httpx.post(f"{self.url}/init", json=body, timeout=60)
        assert answer.status_code == 204, answer.text

    def run(self, cmd: str, *args: str, user: str = "root") -> tuple[str, str]:
        """Output of a command and how it ended, over the Connect protocol's JSON stream."""
        body = json.dumps({"process": {"cmd": cmd, "args": args}, "stdin": False}).encode()
        answer = httpx.post(
            f"{self.url}/process.Process/Start",
            content=struct.pack(">BI", 0, len(body)) + body,
            headers={"Content-Type": "application/connect+json", "X-Access-Token": TOKEN},
            auth=(user, ""),
            timeout=120,
        )
        output, status, data = b"", "", answer.content
        while data:
            length = struct.unpack(">I", data[1:5])[0]
            event = json.loads(data[5 : 5 + length]).get("event", {})
            data = data[5 + length :]
            output += b"".join(base64.b64decode(chunk) for chunk in event.get("data", {}).values())
            status = event.get("end", {}).get("status", status)
        return output.decode(errors="replace"), status


class Images:
    """The current artefacts of this machine."""

    def __init__(self) -> None:
        catalog = Catalog(IMAGES_DIR)
        self.set = catalog.current()
        self.runtime = Runtime(catalog.runtime(self.set.runtime))
        self.kernel, self.initramfs = catalog.kernel(self.set.kernel), catalog.initramfs(self.set.initramfs)
        self.tools, self.rootfs = catalog.tools(self.set.tools), catalog.rootfs(self.set.rootfs)


@pytest.fixture(scope="module")
def images() -> Images:
    return Images()


@contextlib.contextmanager
def booted(images: Images, folder: Path, root: Path, *, tools: bool = True) -> Iterator[Guest]:
    disk, console = folder / "disk.qcow2", folder / "console.log"
    create = ("create", "-q", "-f", "qcow2", "-b", str(root), "-F", "raw", str(disk))
    subprocess.run([*images.runtime.image_tool(), *create], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    network = "net=169.254.0.0/24,dhcpstart=169.254.0.100,dns=169.254.0.3,restrict=on"
    khz = host_tsc_khz() or 0
    command = [
        *images.runtime.command(),
        *("-M", "microvm,accel=tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-serial", f"file:{console}", "-kernel", str(images.kernel)),
        *("-initrd", str(images.initramfs), "-append"),
        f"console=ttyS0 quiet loglevel=4 reboot=t panic=-1 random.trust_cpu=1 tsc=reliable tsc_early_khz={khz}",
        *("-drive", f"id=d0,if=none,format=qcow2,cache=unsafe,file={disk}", "-device", "virtio-blk-device,drive=d0"),
        *("-netdev", f"user,id=n0,{network},host={GATEWAY_IP},hostfwd=tcp:127.0.0.1:{port}-{GUEST_IP}:{ENVD_PORT}"),
        *("-device", f"virtio-net-device,netdev=n0,mac={GUEST_MAC}"),
    ]
    if tools:
        drive = f"id=d1,if=none,format=raw,readonly=on,file={images.tools}"
        command += ["-drive", drive, "-device", "virtio-blk-device,drive=d1"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield Guest(process, console, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def _busybox_root(folder: Path) -> Path:
    """An ext4 image with one file, /bin/busybox."""
    tree, image = folder / "tree", folder / "busybox.ext4"
    (tree / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin" / "busybox")
    asyncio.run(format_ext4(tree, image, 64))
    return image


def test_a_root_file_system_of_nothing_but_busybox_works(images: Images, tmp_path: Path) -> None:
    with booted(images, tmp_path, _busybox_root(tmp_path)) as guest:
        guest.until_healthy()
        guest.init()
        output, status = guest.run("/bin/busybox", "ls", "/")
        assert status == "exit status 0"
        assert set(output.split()) >= {"bin", "dev", "proc", "run", "sys", "tmp"}
        script = "import ssl, asyncio, sys; print(sys.version_info[:2], sys.prefix)"
        assert guest.run("/run/wrenn/tools/bin/python", "-c", script)[0] == "(3, 11) /run/wrenn/tools/usr\n"
        assert "socat" in guest.run("/run/wrenn/tools/bin/socat", "-V")[0]
        assert guest.run("/bin/busybox", "hostname")[0] == "sandbox\n"
        assert "169.254.0.21/30" in guest.run("/bin/busybox", "ip", "address")[0]


def test_the_base_root_file_system_is_what_people_expect(images: Images, tmp_path: Path) -> None:
    with booted(images, tmp_path, images.rootfs) as guest:
        guest.until_healthy()
        guest.init()

        def sh(script: str, user: str = "user") -> str:
            output, status = guest.run("/bin/bash", "-l", "-c", script, user=user)
            assert status == "exit status 0", (script, output)
            return output.strip()

        assert sh("id -un; id -u; pwd; sudo -n id -u; hostname") == "user\n1000\n/home/user\n0\nsandbox"
        assert (
            sh("for p in python python3 pip node npm git curl gcc make socat jq; do command -v $p >/dev/null; done")
            == ""
        )
        assert sh("cat /etc/machine-id") == "0123456789abcdef" * 2
        assert sh("cat /sys/fs/cgroup/cgroup.subtree_control").split() == ["cpu", "io", "memory", "pids"]
        assert sh("stat -c %a /tmp; findmnt -no FSTYPE -T /tmp") == "1777\next4"
        assert sh("sudo modprobe overlay && sudo modprobe veth && lsmod | grep -c veth") == "1"
        assert sh("getent hosts sandbox; cat /etc/resolv.conf").splitlines()[1:] == [f"nameserver {GATEWAY_IP}"]
        assert sh("ip neighbour show dev eth0").endswith(f"{GATEWAY_IP} lladdr 02:fc:00:00:00:06 PERMANENT")
        assert sh("pgrep -c -f chronyd") == "1"
        assert sh("find /var/lib/apt/lists /var/cache/apt /var/log -type f | wc -l") == "0"
        assert sh("df --output=size -B1G / | tail -1").strip() == "8"
        assert "wrenn-init: ready" in guest.console


def test_a_guest_without_tools_disk_ends_and_says_why(images: Images, tmp_path: Path) -> None:
    with booted(images, tmp_path, images.rootfs, tools=False) as guest:
        assert guest.process.wait(timeout=BOOT_LIMIT_S) == 0
        assert "wrenn-initramfs: disk vdb did not appear" in guest.console
