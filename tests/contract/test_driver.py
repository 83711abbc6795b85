"""The driver protocol, held by every driver: how machines live, and above all how they end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.contract.drivers import (
    FREE_PAGE,
    PATIENCE_S,
    Bench,
    Moment,
    Ticking,
    fake_bench,
    peek,
    poke,
    qemu_bench,
    ticking,
    ticks,
    traces,
)
from wrenn_sandbox.core.errors import NotFound, Unavailable
from wrenn_sandbox.disk import overlay
from wrenn_sandbox.vmm.driver import MachineSpec
from wrenn_sandbox.vmm.record import RECORD


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(fake_bench, id="fake", marks=pytest.mark.platform),
        pytest.param(qemu_bench, id="qemu", marks=pytest.mark.machine),
    ],
)
def ready(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The driver with its base baked once for all tests."""
    if request.param is qemu_bench and os.geteuid() != 0:
        pytest.skip("a jail needs root")
    bench: Bench = request.param(tmp_path_factory.mktemp("driver"))
    asyncio.run(bench.baked())
    return bench


@pytest.fixture
def bench(ready: Bench) -> Iterator[Bench]:
    """After each test no process, descriptor, mount or run file is left."""
    before = traces()
    yield ready
    _settled(lambda: traces() - before)
    assert [path for run_dir in ready.directory.glob("*/vmm") for path in run_dir.iterdir()] == []


def _settled(left: Callable[[], frozenset[str]]) -> None:
    deadline = time.monotonic() + 20
    while found := left():
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await main()

    asyncio.run(bounded())


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_booted_machine_runs_until_its_context_is_left(bench: Bench) -> None:
    async def main() -> None:
        spec = bench.new_spec()
        async with bench.boot(spec) as machine:
            assert _alive(machine.pid)
            await ticking(machine)
            pid = machine.pid
            poke(machine, b"the file is the memory")
            with spec.files.memory.open("rb") as file:
                file.seek(FREE_PAGE * 4096)
                assert file.read(22) == b"the file is the memory"
        assert not Path(f"/proc/{pid}").exists()

    _run(main)


def test_pause_and_resume_hold_whatever_their_number(bench: Bench) -> None:
    async def main() -> None:
        async with bench.restored() as machine:
            await ticking(machine)
            await machine.resume()  # it runs already
            await machine.pause()
            await machine.pause()
            still = ticks(machine)
            await asyncio.sleep(0.4)
            assert ticks(machine) == still
            await machine.resume()
            await machine.resume()
            await ticking(machine)

    _run(main)


def test_many_machines_live_from_one_snapshot(bench: Bench) -> None:
    async def one() -> int:
        async with bench.restored() as machine:
            await ticking(machine)
            return machine.pid

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one()) for _ in range(4)]
        assert len({task.result() for task in tasks}) == 4

    _run(main)


def test_a_snapshot_is_of_a_stopped_machine_that_can_go_on(bench: Bench) -> None:
    async def main() -> None:
        async with bench.restored() as machine:
            await ticking(machine)
            state = bench.directory / "again.state"
            await machine.snapshot(state)
            still = ticks(machine)
            assert state.stat().st_size > 0
            await asyncio.sleep(0.3)
            assert ticks(machine) == still
            await machine.resume()
            await ticking(machine)
            with pytest.raises(FileExistsError):
                await machine.snapshot(state)
            state.unlink()

    _run(main)


def test_everybody_who_waits_hears_how_it_ended(bench: Bench) -> None:
    async def main() -> None:
        async with bench.restored() as machine, bench.restored() as neighbour:
            async with asyncio.TaskGroup() as group:
                waiting = [group.create_task(machine.wait()) for _ in range(3)]
                await ticking(machine)
                os.kill(machine.pid, signal.SIGKILL)
            for ended in (*[task.result() for task in waiting], await machine.wait()):
                assert ended.code == -signal.SIGKILL
                assert "signal 9" in ended.reason
            await ticking(neighbour)

    _run(main)


def test_a_dead_machine_answers_nothing(bench: Bench) -> None:
    async def main() -> None:
        async with bench.restored() as machine:
            os.kill(machine.pid, signal.SIGKILL)
            await machine.wait()
            for call in (machine.pause, machine.resume, lambda: machine.snapshot(bench.directory / "never")):
                with pytest.raises(Unavailable) as caught:
                    await call()
                assert caught.value.slug == "vmm_gone"
            assert not (bench.directory / "never").exists()

    _run(main)


def test_an_error_inside_the_context_takes_the_machine_along(bench: Bench) -> None:
    async def main() -> None:
        pid = 0
        with pytest.raises(ZeroDivisionError):
            async with bench.restored() as machine:
                pid = machine.pid
                raise ZeroDivisionError
        assert not Path(f"/proc/{pid}").exists()

    _run(main)


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.4])
def test_a_cancel_at_any_moment_leaves_nothing(bench: Bench, after_s: float) -> None:
    async def forever() -> None:
        async with bench.restored():
            await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(after_s):
                await forever()

    _run(main)


def test_a_state_that_is_none_is_refused_with_a_reason(bench: Bench) -> None:
    async def main() -> None:
        spec = await bench.restore_spec()
        rubbish = bench.directory / "rubbish"
        rubbish.write_bytes(b"no state of any machine" * 100)
        with pytest.raises(Unavailable) as caught:
            async with bench.driver.restore(spec, rubbish):
                pass
        assert caught.value.slug == "vmm_failed"
        assert len(caught.value.message) > 20

    _run(main)


def _digests(paths: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


async def _returned_to(bench: Bench, moment: Moment, text: bytes) -> int:
    """Restore ``moment``, in which ``text`` had been poked; the number of the first tick."""
    async with bench.driver.restore(await bench.spec_from(moment), moment.state) as machine:
        assert peek(machine) == text
        await ticking(machine)
        return int(re.search(r"^tick (\d+)", machine.console, re.M)[1])


def test_a_machine_goes_on_after_each_snapshot_and_each_can_be_returned_to(bench: Bench) -> None:
    async def main() -> None:
        spec = await bench.restore_spec()
        one, two = (spec.files.disk.with_name(f"{name}.qcow2") for name in ("one", "two"))
        async with bench.driver.restore(spec, bench.base.state) as machine:
            await ticking(machine)
            poke(machine, b"first")
            moments = [await bench.taken(machine, (spec.files.disk, *spec.files.backing), one)]
            before = _digests(moments[0].layers)
            numbers = [ticks(machine)]
            await machine.resume()
            await ticking(machine)
            poke(machine, b"second")
            moments.append(await bench.taken(machine, (one, *moments[0].layers), two))
            numbers.append(ticks(machine))
            assert [await machine.writes_to(path) for path in (two, one, spec.files.disk)] == [True, False, False]
            await machine.resume()
            await ticking(machine)
            for moment, number, text in zip(moments, numbers, (b"first", b"second"), strict=True):
                first = await _returned_to(bench, moment, text)
                assert first == (number + 1 if bench.driver.capabilities.driver == "qemu" else 1)
            assert _digests(moments[0].layers) == before
            await ticking(machine)

    _run(main)


async def _still_whole(bench: Bench, machine: Ticking, disk: Path) -> None:
    """The machine goes on, on ``disk``, and can be snapshotted."""
    assert await machine.writes_to(disk)
    await machine.resume()
    await ticking(machine)
    await bench.taken(machine, (disk,), disk.with_name("whole.qcow2"))
    await machine.resume()
    await ticking(machine)


@pytest.mark.parametrize("step", ["none", "pause", "state", "overlay"])
def test_a_snapshot_that_fails_changes_nothing(bench: Bench, step: str) -> None:
    async def refuse() -> None:
        raise Unavailable("no", slug="vmm_refused")

    async def main() -> None:
        spec = await bench.restore_spec()
        above, state = spec.files.disk.with_name("above.qcow2"), spec.files.disk.with_name("failed.state")
        async with bench.driver.restore(spec, bench.base.state) as machine:
            if step == "none":
                with pytest.raises(FileNotFoundError):
                    await machine.snapshot(state, above)
            else:
                overlay.create(above, spec.files.disk, "qcow2")
                with bench.failing(step, refuse), pytest.raises(Unavailable):
                    await machine.snapshot(state, above)
            assert not state.exists()
            await _still_whole(bench, machine, spec.files.disk)

    _run(main)


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.002, 0.003, 0.005, 0.008])
def test_a_snapshot_cancelled_at_any_moment_is_done_or_not(bench: Bench, after_s: float) -> None:
    async def main() -> None:
        spec = await bench.restore_spec()
        above, state = spec.files.disk.with_name("above.qcow2"), spec.files.disk.with_name("cancelled.state")
        overlay.create(above, spec.files.disk, "qcow2")
        async with bench.driver.restore(spec, bench.base.state) as machine:
            done = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(after_s):
                    await machine.snapshot(state, above)
                    done = True
            assert state.exists() == await machine.writes_to(above) == done
            await _still_whole(bench, machine, above if done else spec.files.disk)

    _run(main)


_AGENT = """
    import asyncio, os, pickle, signal, sys
    from pathlib import Path
    from tests.contract.drivers import {bench}
    from wrenn_sandbox.disk import overlay

    async def die():
        os.kill(os.getpid(), signal.SIGKILL)

    async def main():
        bench = {bench}(Path(sys.argv[1]))
        spec, state = pickle.loads(Path(sys.argv[2]).read_bytes())
        async with bench.driver.restore(spec, state) as machine:
            print(machine.pid, flush=True)
            if "{step}":
                above = spec.files.disk.with_name("above.qcow2")
                overlay.create(above, spec.files.disk, "qcow2")
                with bench.failing("{step}", die):
                    await machine.snapshot(above.with_suffix(".state"), above)
                    await machine.resume()
            await asyncio.Event().wait()

    asyncio.run(main())
"""


def _orphaned(bench: Bench, tmp_path: Path, step: str = "") -> tuple[MachineSpec, int]:
    """A machine whose agent has been killed, before ``step`` of its first snapshot or doing nothing; spec and pid."""
    spec = asyncio.run(bench.restore_spec())
    assert bench.base is not None
    pickled = tmp_path / "spec"
    pickled.write_bytes(pickle.dumps((spec, bench.base.state)))
    maker = "fake_bench" if bench.driver.capabilities.driver == "fake" else "qemu_bench"
    code = textwrap.dedent(_AGENT.format(bench=maker, step=step))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(pickled)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    ) as agent:
        assert agent.stdout is not None
        pid = int(agent.stdout.readline())
        if step:
            agent.wait()
        agent.kill()
    return spec, pid


@pytest.fixture
def orphan(bench: Bench, tmp_path: Path) -> tuple[MachineSpec, int]:
    """A machine whose agent has been killed: its spec and its pid."""
    return _orphaned(bench, tmp_path)


@pytest.mark.parametrize(("step", "done"), [("state", False), ("overlay", False), ("settle", True), ("resume", True)])
def test_a_snapshot_whose_agent_was_killed_is_done_or_not(bench: Bench, tmp_path: Path, step: str, done: bool) -> None:
    if step == "settle" and bench.driver.capabilities.driver == "fake":
        pytest.skip("the fake has nothing to settle")
    spec, pid = _orphaned(bench, tmp_path, step)
    above = spec.files.disk.with_name("above.qcow2")

    async def main() -> None:
        async with bench.driver.adopt(spec, pid) as machine:
            assert await machine.writes_to(above) == done
            poke(machine, b"kept")
            await _still_whole(bench, machine, above if done else spec.files.disk)
            assert peek(machine) == b"kept"

    _run(main)


def test_the_next_agent_adopts_a_machine_that_went_on(bench: Bench, orphan) -> None:
    spec, pid = orphan

    async def main() -> None:
        assert _alive(pid)
        async with bench.driver.adopt(spec, pid) as machine:
            assert machine.pid == pid
            await ticking(machine)
            await machine.pause()
            await machine.resume()
            await ticking(machine)
            os.kill(pid, signal.SIGKILL)
            assert (await machine.wait()).reason
        assert not _alive(pid)

    _run(main)


def test_an_adoption_that_fails_or_is_given_up_leaves_the_machine_to_the_next_try(bench: Bench, orphan) -> None:
    spec, pid = orphan
    before = {path.name for path in spec.run_dir.iterdir()}

    async def refuse() -> None:
        raise Unavailable("no", slug="vmm_unresponsive")

    async def hang() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        with bench.failing("adopt", refuse), pytest.raises(Unavailable):
            async with bench.driver.adopt(spec, pid):
                raise AssertionError("it was adopted")
        assert _alive(pid)
        with bench.failing("adopt", hang), pytest.raises(TimeoutError):
            async with asyncio.timeout(1), bench.driver.adopt(spec, pid):
                raise AssertionError("it was adopted")
        assert _alive(pid) and before <= {path.name for path in spec.run_dir.iterdir()}
        async with bench.driver.adopt(spec, pid) as machine:
            await ticking(machine)
            await _still_whole(bench, machine, spec.files.disk)
        assert not _alive(pid)

    _run(main)


def test_leaving_an_adopted_machine_ends_it(bench: Bench, orphan) -> None:
    spec, pid = orphan

    async def main() -> None:
        async with bench.driver.adopt(spec, pid) as machine:
            await ticking(machine)
        assert not _alive(pid)

    _run(main)


def test_nobody_adopts_a_process_that_is_not_the_machine(bench: Bench, orphan) -> None:
    spec, pid = orphan

    async def refused(number: int) -> None:
        with pytest.raises(NotFound) as caught:
            async with bench.driver.adopt(spec, number):
                pass
        assert caught.value.slug == "vmm_gone"

    async def main() -> None:
        await refused(os.getpid())
        record = spec.run_dir / RECORD
        true = record.read_text()
        record.write_text(true.replace(f'"pid": {pid}', f'"pid": {os.getpid()}'))
        await refused(os.getpid())  # the start time does not fit: a number that was used again
        record.write_text(true)
        async with bench.driver.adopt(spec, pid):
            os.kill(pid, signal.SIGKILL)
        await refused(pid)

    _run(main)
