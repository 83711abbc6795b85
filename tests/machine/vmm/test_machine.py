"""Real QEMU machines: what a restore brings back, what clones share, and how they end."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from tests.contract.drivers import PATIENCE_S, Bench, Moment, qemu_bench, ticking, ticks, traces
from wrenn_sandbox.core.errors import Exhausted, Unavailable
from wrenn_sandbox.core.slots import GATEWAY_IP, GUEST_IP
from wrenn_sandbox.disk import overlay
from wrenn_sandbox.net.tap import open_tap
from wrenn_sandbox.vmm.log import LOG_BYTES

pytestmark = [pytest.mark.machine, pytest.mark.skipif(os.geteuid() != 0, reason="a jail needs root")]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = qemu_bench(tmp_path_factory.mktemp("qemu"))
    asyncio.run(bench.baked())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))  # the first one opens a pipe that stays
    return bench


@pytest.fixture
def bench(ready: Bench) -> Iterator[Bench]:
    before = traces()
    yield ready
    assert traces() - before == set()


def _run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await main()

    asyncio.run(bounded())


def test_a_restore_goes_on_where_the_snapshot_was(bench: Bench) -> None:
    async def main() -> None:
        async with bench.restored() as machine:
            await ticking(machine, more=5)
            lines = re.findall(r"tick (\d+) disk (\d+) tools (\w+)", machine.console)
        counts = [(int(tick), int(disk)) for tick, disk, _ in lines]
        first = counts[0][0]
        assert first > 2  # not a boot: that would begin at 1
        assert counts == [(first + n, first + n - 1) for n in range(len(counts))]  # memory and disk go together
        assert {tools for _, _, tools in lines} == {"botto"}

    _run(main)


def test_clones_write_nothing_into_what_they_share(bench: Bench) -> None:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    async def main() -> None:
        base = (await bench.baked()).spec.files
        shared = (base.memory, base.disk, *base.backing, bench.base.state)
        before = [digest(path) for path in shared]
        async with bench.restored() as one, bench.restored() as other:
            await ticking(one, more=4)
            await ticking(other, more=4)
        assert [digest(path) for path in shared] == before

    _run(main)


def test_a_machine_has_only_its_files_and_no_rights(bench: Bench) -> None:
    async def main() -> None:
        async with bench.restored() as machine:
            proc = Path(f"/proc/{machine.pid}")
            status = (proc / "status").read_text()
            assert re.search(r"^CapEff:\s0+$", status, re.M) and re.search(r"^NoNewPrivs:\s1$", status, re.M)
            assert re.search(r"^Seccomp:\s2$", status, re.M)
            assert {path.name for path in (proc / "root").iterdir()} == {
                "dev", "disk", "layers", "memory", "runtime", "tools",
            }  # fmt: skip
            maps = (proc / "maps").read_text()
            assert re.search(r" rw-p .*/memory$", maps, re.M)  # private: what it writes stays its own

    _run(main)


def test_files_belong_to_root_again_when_the_machine_has_gone(bench: Bench) -> None:
    async def main() -> None:
        spec = await bench.restore_spec()
        async with bench.driver.restore(spec, bench.base.state):
            info = spec.files.disk.stat()
            assert (info.st_uid, info.st_mode & 0o777) == (spec.uid, 0o600)
            layer = spec.files.disk.rename(spec.files.disk.with_name("layer.qcow2"))
        info = layer.stat()
        assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (0, 0, 0o644)
        checked = subprocess.run(["qemu-img", "check", layer], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr

    _run(main)


def test_an_overlay_is_consistent_when_the_snapshot_returns(bench: Bench) -> None:
    """The VMM is killed right after, with no chance to write anything back."""

    async def main() -> None:
        base = await bench.baked()
        spec = await bench.restore_spec()
        async with bench.driver.restore(spec, base.state) as machine:
            await ticking(machine, more=3)
            await machine.snapshot(bench.directory / "clone.state")
        checked = subprocess.run(["qemu-img", "check", spec.files.disk], capture_output=True, text=True, check=False)
        assert "No errors" in checked.stdout, checked.stdout + checked.stderr
        (bench.directory / "clone.state").unlink()

    _run(main)


def _blocks(layer: Path, scratch: Path) -> list[bytes]:
    """What the guest left in the first bytes of the blocks of its disk, as seen from ``layer`` down."""
    raw = scratch / "seen.raw"
    for command in (["check", "-q", layer], ["convert", "-f", "qcow2", "-O", "raw", layer, raw]):
        subprocess.run(["qemu-img", *command], check=True)
    with raw.open("rb") as file:
        return [os.pread(file.fileno(), 8, n * 4096) for n in range(1, 200)]


def test_layers_hold_all_that_was_written_before_them_and_nothing_later(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        spec = await bench.restore_spec()
        layers, seen = [spec.files.disk, *spec.files.backing], []
        async with bench.driver.restore(spec, bench.base.state) as machine:
            for number in range(3):
                await ticking(machine, more=3)
                moment = await bench.taken(machine, layers, spec.files.disk.with_name(f"{number}.qcow2"))
                seen.append((ticks(machine), layers[0]))
                assert (layers[0].stat().st_uid, layers[0].stat().st_mode & 0o777) == (0, 0o644)
                layers = [moment.state.with_suffix(".qcow2"), *layers]
                assert (layers[0].stat().st_uid, layers[0].stat().st_mode & 0o777) == (spec.uid, 0o600)
                await machine.resume()
            assert _open_for_writing(machine.pid) == [layers[0].name]
            for last, layer in seen:
                trail = _blocks(layer, tmp_path)
                assert trail[: last - 1] == [b"%08d" % n for n in range(1, last)]
                assert set(trail[last:]) == {bytes(8)}  # block number ``last`` itself may be on its way
        assert (layers[0].stat().st_uid, layers[0].stat().st_mode & 0o777) == (0, 0o644)

    _run(main)


def _open_for_writing(pid: int) -> list[str]:
    """Names of the qcow2 files that a process could write to."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        flags = int(re.search(r"^flags:\s+(\d+)", (entry.parents[1] / "fdinfo" / entry.name).read_text(), re.M)[1], 8)
        name = str(entry.readlink()).rpartition("/")[2]
        if flags & os.O_ACCMODE != os.O_RDONLY and name.endswith(".qcow2"):
            found.append(name)
    return found


def test_an_overlay_that_is_none_is_refused_and_let_go_of(bench: Bench) -> None:
    async def main() -> None:
        spec = await bench.restore_spec()
        rubbish = spec.files.disk.with_name("rubbish.qcow2")
        rubbish.write_bytes(b"no image" * 10_000)
        async with bench.driver.restore(spec, bench.base.state) as machine:
            with pytest.raises(Unavailable, match="qcow2"):
                await machine.snapshot(bench.directory / "never", rubbish)
            held = [entry.readlink().name for entry in Path(f"/proc/{machine.pid}/fd").iterdir()]
            assert not [name for name in held if name.startswith(("rubbish", "never"))]
            assert rubbish.stat().st_uid == 0
            await machine.resume()
            await ticking(machine)

    _run(main)


@pytest.mark.parametrize("room", [0, 4096])
def test_a_state_that_finds_no_room_says_so(bench: Bench, tmp_path: Path, room: int) -> None:
    async def main() -> None:
        spec = await bench.restore_spec()
        above = spec.files.disk.with_name("above.qcow2")
        overlay.create(above, spec.files.disk, "qcow2")
        async with bench.driver.restore(spec, bench.base.state) as machine:
            with pytest.raises(Exhausted) as caught:
                await machine.snapshot(tmp_path / "state", above)
            assert caught.value.slug == "host_disk_full"
            assert not (tmp_path / "state").exists()
            assert await machine.writes_to(spec.files.disk)
            await machine.resume()
            await ticking(machine)

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        (tmp_path / "filler").write_bytes(bytes(65536 - room))
        _run(main)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_long_chain_of_layers_is_restored_and_grows(bench: Bench) -> None:
    async def main() -> None:
        base = (await bench.baked()).spec.files
        place = bench.directory / "chain"
        place.mkdir()
        layers = [base.disk, *base.backing]
        for number in range(9):
            overlay.create(place / f"{number}.qcow2", layers[0], "qcow2")
            (place / f"{number}.qcow2").chmod(0o644)
            layers.insert(0, place / f"{number}.qcow2")
        spec = await bench.spec_from(Moment(bench.base.state, tuple(layers), ()))
        async with bench.driver.restore(spec, bench.base.state) as machine:
            await ticking(machine)
            await bench.taken(machine, (spec.files.disk, *layers), place / "above.qcow2")
            await machine.resume()
            await ticking(machine)

    _run(main)


def test_a_guest_cannot_fill_the_host_through_its_console(bench: Bench) -> None:
    async def main() -> None:
        spec = bench.new_spec()
        platform = replace(
            spec.platform, kernel_cmdline=spec.platform.kernel_cmdline.replace("quiet", "earlyprintk=ttyS0")
        )
        async with bench.boot(replace(spec, platform=platform)) as machine:
            await ticking(machine)
            console = Path(f"/proc/{machine.pid}/fd/1")
            with pytest.raises(PermissionError), console.open("r+b") as file:
                file.seek(LOG_BYTES - 3)
                file.write(b"beyond")
                file.flush()
            assert console.stat().st_size == LOG_BYTES
            await machine.pause()

    _run(main)


def test_a_guest_that_stops_says_so(bench: Bench) -> None:
    async def main(word: str) -> str:
        spec = bench.new_spec()
        platform = replace(spec.platform, kernel_cmdline=spec.platform.kernel_cmdline.replace("rdinit=/ticking", word))
        async with bench.boot(replace(spec, platform=platform)) as machine, asyncio.timeout(PATIENCE_S):
            return (await machine.wait()).reason

    # Without a disk that it can mount the initramfs gives up; without a first program the kernel panics.
    assert "kernel panicked" in asyncio.run(main("rdinit=/none root=/none init=/none"))


def test_a_vmm_that_cannot_start_says_why(bench: Bench) -> None:
    async def main() -> None:
        spec = bench.new_spec()
        with pytest.raises(Unavailable) as caught:
            async with bench.boot(replace(spec, platform=replace(spec.platform, cpu_model="no-such-cpu"))):
                pass
        assert caught.value.slug == "vmm_failed"
        assert "no-such-cpu" in caught.value.message

    _run(main)


def test_it_all_works_on_uvloop_too(bench: Bench) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), bench.restored() as machine:
            await ticking(machine)
            above = bench.directory / "uv.qcow2"
            overlay.create(above, bench.base.spec.files.disk, "qcow2")
            await machine.snapshot(bench.directory / "uv.state", above)
            assert await machine.writes_to(above)
            await machine.resume()
            await ticking(machine)
        (bench.directory / "uv.state").unlink()
        above.unlink()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@contextmanager
def _namespace(name: str) -> Iterator[int]:
    """A network namespace with tap0 as a slot has it; the tap's descriptor."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    opened: list[int] = []

    def enter() -> None:
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0
            opened.append(open_tap("tap0"))
        finally:
            os.close(fd)

    ip("netns", "add", name)
    try:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        ip("-n", name, "addr", "add", f"{GATEWAY_IP}/30", "dev", "tap0")
        ip("-n", name, "link", "set", "tap0", "up")
        yield opened[0]
    finally:
        for fd in opened:
            os.close(fd)
        ip("netns", "del", name)


def test_the_tap_carries_frames_before_and_after_a_restore(bench: Bench) -> None:
    def answers(name: str) -> bool:
        ping = ["ip", "netns", "exec", name, "busybox", "ping", "-c", "1", "-W", "5", GUEST_IP]
        return subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode == 0

    async def main() -> None:
        name = f"wtvmm{os.getpid()}"
        state = bench.directory / "net.state"
        with _namespace(name) as tap:
            spec = replace(bench.new_spec(), tap_fd=tap)
            async with bench.boot(spec) as machine:
                await ticking(machine)
                assert await asyncio.to_thread(answers, name)
                await machine.snapshot(state)
            async with bench.driver.restore(spec, state):
                assert await asyncio.to_thread(answers, name)
        state.unlink()

    _run(main)


def test_deaths_are_noticed_at_once(bench: Bench) -> None:
    async def main() -> None:
        async with bench.restored() as machine:
            before = ticks(machine)
            os.kill(machine.pid, 9)
            begin = time.monotonic()
            ended = await machine.wait()
            assert time.monotonic() - begin < 5, "SPECIFICATION: within 5 s"
            assert ended.code == -9
            assert ticks(machine) >= before  # the console outlives it

    _run(main)
