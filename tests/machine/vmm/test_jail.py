"""What a VMM's user can reach from within its jail: a program that tries runs there in QEMU's place."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.drivers import traces
from wrenn_sandbox.core.errors import Bug, Unavailable
from wrenn_sandbox.core.slots import LAST_SLOT, slot
from wrenn_sandbox.vmm import record
from wrenn_sandbox.vmm.launch import JailFile, Plan, jailed
from wrenn_sandbox.vmm.log import Log, new_log
from wrenn_sandbox.vmm.process import Identity, Process
from wrenn_sandbox.vmm.record import RECORD

pytestmark = [pytest.mark.machine, pytest.mark.skipif(os.geteuid() != 0, reason="a jail needs root")]

_PROGRAM = Path(__file__).with_name("probe_program.py")
#: Enough of this host for its Python to run in the jail; a VMM gets its runtime instead.
_PYTHON = [Path(sys.base_prefix), *(Path(p) for p in ("/usr/lib", "/usr/lib64", "/usr/local/lib") if Path(p).is_dir())]
_LINKS = [Path(p) for p in ("/lib", "/lib64") if Path(p).exists()]
#: EPERM or an errno that says that the thing does not exist here; never success.
_NOT_THERE = {"ENOENT", "ESRCH", "ENETUNREACH", "ECONNREFUSED"}
_FORBIDDEN = {"EPERM", "EACCES", "EROFS"}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No process, descriptor or mount is left."""
    before = traces()
    yield
    assert traces() - before == set()


@dataclass(frozen=True)
class Place:
    """A sandbox's files below a data directory, and another's."""

    directory: Path
    disk: Path
    tools: Path
    secret: Path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for directory in (mine, other):
        (directory / "vmm").mkdir(parents=True)
    for path in (mine / "disk", mine / "tools", other / "disk"):
        path.write_bytes(b"data")
        path.chmod(0o644)
    os.chown(mine / "disk", _seat().uid, _seat().gid)
    return Place(mine, mine / "disk", mine / "tools", other / "disk")


def _seat(number: int = 0):
    return slot(LAST_SLOT - 500 - number)


def _plan(place: Place, argv: tuple[str, ...], fds: Mapping[int, int], number: int = 0) -> Plan:
    files = [JailFile(path, str(path)) for path in (*_PYTHON, *_LINKS)]
    own = [JailFile(_PROGRAM, "/program.py"), JailFile(place.tools, "/tools"), JailFile(place.disk, "/disk", True)]
    seat = _seat(number)
    directory = place.directory / "vmm" if number == 0 else place.secret.parent / "vmm"
    return Plan(f"jail-{number}", directory, (*files, *own), argv, fds, seat.uid, seat.gid)


@asynccontextmanager
async def _running(place: Place, outside: dict[str, object], number: int = 0) -> AsyncIterator[tuple[Process, Log]]:
    python = str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
    argv = (python, "-I", "-S", "/program.py", json.dumps(outside))
    with new_log("report") as log:
        async with jailed(_plan(place, argv, {1: log.fd, 2: log.fd}, number)) as process:
            yield process, log


async def _report(process: Process, log: Log) -> dict[str, dict[str, object]]:
    async with asyncio.timeout(20):
        while not log.text().endswith("\n"):
            assert process.code is None, (process.code, log.text())
            await asyncio.sleep(0.01)
    return json.loads(log.text())


@contextmanager
def _outside(place: Place, neighbour: int) -> Iterator[dict[str, object]]:
    """Things that exist outside of the jail and are open to everybody there."""
    libc = ctypes.CDLL(None, use_errno=True)
    abstract = f"wrenn-test-{os.getpid()}"
    key = 0x77000000 | os.getpid()
    shm = libc.shmget(key, 4096, 0o1666)
    assert shm != -1
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as named:
        named.bind("\0" + abstract)
        named.listen()
        try:
            yield {
                "secret": str(place.secret),
                "directory": str(place.directory.parent),
                "agent": os.getpid(),
                "neighbour": neighbour,
                "port": server.getsockname()[1],
                "abstract": abstract,
                "shm": key,
            }
        finally:
            libc.shmctl(shm, 0, None)


def test_nothing_of_the_host_or_of_another_sandbox_can_be_reached(place: Place) -> None:
    async def main() -> dict[str, dict[str, object]]:
        nobody = {"secret": "/x", "directory": "/x", "agent": 1, "neighbour": 1, "port": 1, "abstract": "x", "shm": 1}
        async with _running(place, nobody, number=1) as (neighbour, log):
            await _report(neighbour, log)
            with _outside(place, neighbour.pid) as outside:
                async with _running(place, outside) as (process, log):
                    return await _report(process, log)

    report = asyncio.run(main())
    attempts, facts = report["attempts"], report["facts"]
    assert attempts.pop("write its own disk") == "GOT 4"
    assert {name: got for name, got in attempts.items() if got not in _NOT_THERE | _FORBIDDEN} == {}
    for name in ("read another sandbox's disk", "list the data directory", "look at the host's processes"):
        assert attempts[name] == "ENOENT"
    assert attempts["connect to the host's loopback"] == "ENETUNREACH"
    assert attempts["make a user namespace"] == "EPERM"
    assert facts["pid"] == 1
    assert facts["uid"] == [_seat().uid] * 3
    assert facts["groups"] == []
    assert {"dev", "disk", "program.py", "tools"} <= set(facts["root"])
    assert not {"proc", "sys", "etc", "tmp", "var", "home"} & set(facts["root"]) - {_PYTHON[0].parts[1]}
    assert facts["dev"] == ["null", "urandom", "zero"]
    assert facts["host"] == "vmm"
    assert facts["links"] == ["lo"]
    assert "PATH" not in facts["environment"]


def test_the_kernel_agrees_about_the_rights(place: Place) -> None:
    async def main() -> None:
        before = Path("/proc/self/mountinfo").read_text()
        async with _running(place, {"secret": "/x", "directory": "/x", "agent": 1, "neighbour": 1, "port": 1,
                                    "abstract": "x", "shm": 1}) as (process, log):  # fmt: skip
            await _report(process, log)
            proc = Path(f"/proc/{process.pid}")
            status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
            for caps in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[caps], 16) == 0, caps
            assert status["NoNewPrivs"] == "1"
            for kind in ("mnt", "net", "pid", "ipc", "uts"):
                assert (proc / "ns" / kind).readlink() != Path(f"/proc/self/ns/{kind}").readlink()
            assert (proc / "oom_score_adj").read_text().strip() == "500"
            limits = (proc / "limits").read_text()
            assert "Max core file size        0                    0" in limits
            assert "Max open files            256                  256" in limits
            assert {fd.name for fd in (proc / "fd").iterdir()} == {"0", "1", "2"}
            assert (proc / "stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())  # no process between
            assert os.getsid(process.pid) != os.getsid(0)
            assert Path("/proc/self/mountinfo").read_text() == before

    asyncio.run(main())


def test_the_vmm_is_written_down_before_it_runs(place: Place) -> None:
    async def main() -> None:
        async with _running(place, {}) as (process, _):
            assert json.loads((place.directory / "vmm" / RECORD).read_text())["pid"] == process.pid

    asyncio.run(main())


def test_a_step_that_fails_is_named(place: Place) -> None:
    async def main(argv: tuple[str, ...]) -> str:
        with pytest.raises(Unavailable) as caught:
            async with jailed(_plan(place, argv, {})):
                pass
        assert caught.value.slug == "jail_failed"
        return caught.value.message

    assert "/no/such/program" in asyncio.run(main(("/no/such/program",)))


def test_one_that_is_killed_before_it_runs_is_no_overload(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write = record.write

    def killed(directory: Path, identity: Identity) -> None:
        write(directory, identity)
        os.kill(identity.pid, signal.SIGKILL)
        os.waitid(os.P_PID, identity.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(record, "write", killed)

    async def main() -> None:
        with pytest.raises(Unavailable, match="killed") as caught:
            async with _running(place, {}):
                pass
        assert caught.value.slug == "jail_failed"

    asyncio.run(main())


def test_one_that_cannot_be_written_down_does_not_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, __: Identity) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record, "write", full)

    async def main() -> None:
        with pytest.raises(OSError, match="No space"):
            async with _running(place, {}):
                pass

    asyncio.run(main())


def test_a_file_that_the_vmm_could_not_read_is_refused_at_once(place: Place) -> None:
    place.tools.chmod(0o600)

    async def main() -> None:
        with pytest.raises(Bug, match="0644"):
            async with jailed(_plan(place, ("/x",), {})):
                pass

    asyncio.run(main())
