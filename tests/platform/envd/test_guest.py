"""What /init does to the machine itself, in a make-believe guest: /etc, /run, host name and network of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.platform.envd.daemon import Daemon, eventually, own_network, running
from tests.platform.envd.test_ports import answers, echo

pytestmark = [
    pytest.mark.platform,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of its own need root"),
]

GUEST_ADDRESS = "169.254.0.21"
IDENTITY = {"sandboxId": "sb-1", "templateId": "tpl-1", "machineId": "0123456789abcdef" * 2, "hostname": "box"}


@contextmanager
def make_believe(shim: Path, folder: Path, *, capabilities: str = "+sys_admin") -> Iterator[Daemon]:
    """envd in guest mode. Its clock is this machine's, so it must be this machine's clock device that says so."""
    etc = folder / "etc"
    etc.mkdir()
    for name in ("passwd", "group"):
        shutil.copy(f"/etc/{name}", etc / name)
    (etc / "passwd").open("a").write("user:x:1000:1000::/home/user:/bin/sh\n")
    (etc / "machine-id").write_text("f" * 32 + "\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n")
    hide = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /sys/fs/cgroup"
    script = f'{hide} && mount --bind {etc} /etc && exec setpriv --bounding-set={capabilities} "$@"'
    wrapper = ("unshare", "--mount", "--uts", "sh", "-c", script, "sh")
    with own_network():
        subprocess.run(["ip", "address", "add", f"{GUEST_ADDRESS}/30", "dev", "lo"], check=True)
        with running(shim, wrapper=wrapper, address=GUEST_ADDRESS) as daemon:
            yield daemon


def read(daemon: Daemon, path: str) -> str:
    answer = daemon.client.get("/files", params={"path": path, "username": "root"}, headers=daemon.authorized)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_guest_gets_its_own_identity(exec_shim: Path, tmp_path: Path) -> None:
    before = (socket.gethostname(), Path("/etc/machine-id").read_text())
    with make_believe(exec_shim, tmp_path) as daemon:
        assert daemon.init(**IDENTITY).status_code == 204
        found = {
            path: read(daemon, path).strip()
            for path in (
                "/etc/machine-id",
                "/proc/sys/kernel/hostname",
                "/etc/hostname",
                "/run/wrenn/.WRENN_SANDBOX",
                "/run/wrenn/.WRENN_SANDBOX_ID",
                "/run/wrenn/.WRENN_TEMPLATE_ID",
                "/run/e2b/.E2B_SANDBOX_ID",
            )
        }
        hosts = read(daemon, "/etc/hosts")
        envs = daemon.client.get("/envs", headers=daemon.authorized).json()
        written = daemon.client.post(
            "/files?path=/tmp/envd-guest-test",
            content=b"",
            headers={**daemon.authorized, "Content-Type": "application/octet-stream"},
        )
    owner = Path("/tmp/envd-guest-test").stat().st_uid
    Path("/tmp/envd-guest-test").unlink()
    assert list(found.values()) == [IDENTITY["machineId"], "box", "box", "true", "sb-1", "tpl-1", "sb-1"]
    assert hosts == "127.0.0.1 localhost\n127.0.1.1 box\n"
    assert (envs["WRENN_SANDBOX"], envs["WRENN_SANDBOX_ID"], envs["E2B_SANDBOX_ID"]) == ("true", "sb-1", "sb-1")
    assert (written.status_code, owner) == (200, 1000)  # ``user`` is the default where there is one
    assert (socket.gethostname(), Path("/etc/machine-id").read_text()) == before


def test_a_guest_forwards_from_the_guest_address(exec_shim: Path, tmp_path: Path) -> None:
    with make_believe(exec_shim, tmp_path) as daemon, echo("127.0.0.1") as server:
        daemon.init(**IDENTITY)
        eventually(lambda: answers(daemon, server.port), "the port is reachable")
        daemon.prepare()
        assert daemon.socats() == []


def test_a_guest_that_cannot_reseed_stays_closed(exec_shim: Path, tmp_path: Path) -> None:
    with make_believe(exec_shim, tmp_path, capabilities="-sys_admin") as daemon:
        refused = daemon.init(**IDENTITY)
        assert (refused.status_code, refused.json()["error_code"]) == (503, "init_failed")
        assert daemon.client.get("/envs", headers=daemon.authorized).status_code == 401
        assert daemon.init(entropy=None, **IDENTITY).json()["error_code"] == "invalid_entropy"
        assert daemon.init(reseed=False, entropy=None).status_code == 204  # what only a test says
