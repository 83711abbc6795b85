"""Agents of their own: how one starts, ends, dies and is followed by another."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from tests.platform.hostagent.conftest import clean, connected, eventually, stop, vmm_pid
from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.core.errors import Conflict, Exhausted
from wrenn_sandbox.disk.build import read_manifest
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

pytestmark = pytest.mark.platform


def test_a_full_host_says_so_before_anything_is_made(start_agent, tmp_path: Path) -> None:
    async def work(agent) -> None:
        async with connected(agent) as client:
            first = await client.create()
            with pytest.raises(Exhausted) as full:
                await client.create()
            assert full.value.slug == "host_full" and full.value.retry_after_s > 0
            await client.destroy(first.sandbox_id)
            await client.destroy((await client.create()).sandbox_id)

    with clean(tmp_path):
        agent = start_agent("--max-sandboxes", "1", data_dir=tmp_path)
        try:
            asyncio.run(work(agent))
        finally:
            assert stop(agent) == 0


def test_a_full_disk_is_typed(start_agent, tmp_path: Path) -> None:
    async def work(agent) -> None:
        async with connected(agent) as client:
            with pytest.raises(Exhausted) as full:
                await client.create()
            assert full.value.slug == "host_disk_full"

    with clean(tmp_path):
        agent = start_agent("--min-disk-mib", str(1 << 40), data_dir=tmp_path)
        try:
            asyncio.run(work(agent))
        finally:
            assert stop(agent) == 0


def test_sigterm_without_sandboxes_leaves_nothing(start_agent, tmp_path: Path) -> None:
    async def work(agent) -> None:
        async with connected(agent) as client:
            sandboxes = [(await client.create()).sandbox_id for _ in range(3)]
            for sb in sandboxes:
                start = pb.StartBackgroundRequest(sandbox_id=sb, cmd="sleep", args=["600"])
                await client.channel.unary("StartBackground", start, pb.StartBackgroundResponse)
            rest = await client.drain(action=pb.TimeoutAction.KILL)
            assert (rest.total, rest.done, rest.failed) == (3, 3, 0)
            assert await client.listed() == {}

    with clean(tmp_path):
        agent = start_agent(data_dir=tmp_path)
        asyncio.run(work(agent))
        assert stop(agent) == 0
        assert not (tmp_path / "ready.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_agent_takes_over_what_runs(start_agent, tmp_path: Path, number: signal.Signals) -> None:
    async def leave(agent) -> tuple[str, str, int]:
        async with connected(agent) as client:
            living, paused = (await client.create()).sandbox_id, (await client.create()).sandbox_id
            start = pb.StartBackgroundRequest(sandbox_id=living, cmd="sleep", args=["600"], tag="sleeper")
            await client.channel.unary("StartBackground", start, pb.StartBackgroundResponse)
            limits = pb.SetLifetimeRequest(sandbox_id=living, lifetime=pb.Lifetime(idle_timeout_s=777))
            await client.channel.unary("SetLifetime", limits, pb.SetLifetimeResponse)
            await client.pause(paused)
            return living, paused, vmm_pid(agent, living)

    async def look(agent, living: str, paused: str, pid: int) -> None:
        async with connected(agent) as client:
            listed = await client.listed()
            assert {key: info.status for key, info in listed.items()} == {living: "running", paused: "paused"}
            request = pb.ListProcessesRequest(sandbox_id=living)
            found = await client.channel.unary("ListProcesses", request, pb.ListProcessesResponse)
            assert [process.tag for process in found.processes] == ["sleeper"] and vmm_pid(agent, living) == pid
            assert (await client.listed())[living].lifetime.idle_timeout_s == 777
            await client.resume(paused, listed[paused].build_id)
            assert (await client.exec(paused, "echo", "again")).stdout == b"again\n"
            build = await client.pause(living)
            await client.resume(living, build.build_id)
            await client.destroy(living)
            await client.destroy(paused)
            await eventually(lambda: list((agent.data_dir / "builds").iterdir()) == [], "no build is left")

    with clean(tmp_path):
        first = start_agent(data_dir=tmp_path)
        left = asyncio.run(leave(first))
        first.process.send_signal(number)
        first.process.wait(30)
        assert Path(f"/proc/{left[2]}").exists(), "a VMM outlives its agent"
        second = start_agent(data_dir=tmp_path)
        try:
            asyncio.run(look(second, *left))
        finally:
            assert stop(second) == 0
        reap_orphans()


def test_what_was_being_made_or_paused_when_an_agent_was_killed_is_settled(start_agent, tmp_path: Path) -> None:
    async def leave(agent) -> tuple[str, int]:
        async with connected(agent) as client:
            sb = (await client.create()).sandbox_id
            pid = vmm_pid(agent, sb)
            (agent.data_dir / "builds" / f".{uuid4()}.new").mkdir()  # half a draft
            (agent.data_dir / "run" / f"sb-{uuid4()}").mkdir()  # a create that had just begun
            for process in (pid, *children(pid)):
                os.kill(process, signal.SIGSTOP)  # a pause that had stopped its machine
            return sb, pid

    async def look(agent, sb: str, pid: int) -> None:
        async with connected(agent) as client:
            assert {key: info.status for key, info in (await client.listed()).items()} == {sb: "running"}
            assert (await client.exec(sb, "echo", "on")).stdout == b"on\n" and vmm_pid(agent, sb) == pid
            await eventually(lambda: len(list((agent.data_dir / "run").glob("sb-*"))) == 1, "the rest is swept")
            await client.destroy(sb)

    with clean(tmp_path):
        first = start_agent(data_dir=tmp_path)
        left = asyncio.run(leave(first))
        first.process.kill()
        first.process.wait()
        second = start_agent(data_dir=tmp_path)
        try:
            asyncio.run(look(second, *left))
        finally:
            assert stop(second) == 0
        reap_orphans()


def test_a_vmm_that_died_without_an_agent_is_an_error_that_offers_its_last_build(start_agent, tmp_path: Path) -> None:
    async def leave(agent) -> tuple[str, str, int]:
        async with connected(agent) as client:
            sb = (await client.create()).sandbox_id
            build = await client.snapshot(sb, str(uuid4()))
            return sb, build.build_id, vmm_pid(agent, sb)

    async def look(agent, sb: str, build_id: str) -> None:
        async with connected(agent) as client:
            info = await client.ended(sb)
            assert (info.status, info.reason_slug, info.build_id) == ("error", "vmm_died", build_id)
            await client.resume(sb, build_id)
            assert (await client.exec(sb, "echo", "back")).stdout == b"back\n"
            await client.destroy(sb)

    with clean(tmp_path):
        first = start_agent(data_dir=tmp_path)
        sb, build_id, pid = asyncio.run(leave(first))
        first.process.kill()
        first.process.wait()
        os.kill(pid, signal.SIGKILL)
        second = start_agent(data_dir=tmp_path)
        try:
            asyncio.run(look(second, sb, build_id))
        finally:
            assert stop(second) == 0
        reap_orphans()


@pytest.mark.parametrize("what", ["record", "build"])
def test_a_machine_that_cannot_be_taken_over_yet_is_left_alone_and_tried_again(
    start_agent, tmp_path: Path, what: str
) -> None:
    async def leave(agent) -> tuple[str, int, Path]:
        async with connected(agent) as client:
            sb = (await client.create()).sandbox_id
            start = pb.StartBackgroundRequest(sandbox_id=sb, cmd="sleep", args=["600"], tag="sleeper")
            await client.channel.unary("StartBackground", start, pb.StartBackgroundResponse)
            build = await client.snapshot(sb, str(uuid4()))
            record = agent.data_dir / "run" / sb / "sandbox.json"
            manifest = agent.data_dir / "builds" / build.build_id / "manifest.json"
            return sb, vmm_pid(agent, sb), record if what == "record" else manifest

    async def look(agent, sb: str, pid: int, broken: Path, whole: str) -> None:
        async with connected(agent) as client:
            assert {key: info.status for key, info in (await client.listed()).items()} == {sb: "running"}
            await eventually(lambda: agent.log().count("cannot be taken over yet") >= 2, "it is tried again")
            assert Path(f"/proc/{pid}").exists() and broken.exists()
            broken.write_text(whole)
            request = pb.ListProcessesRequest(sandbox_id=sb)
            found = await client.channel.unary("ListProcesses", request, pb.ListProcessesResponse)
            assert [process.tag for process in found.processes] == ["sleeper"] and vmm_pid(agent, sb) == pid
            build = await client.pause(sb)
            await client.resume(sb, build.build_id)
            await client.destroy(sb)

    with clean(tmp_path):
        first = start_agent(data_dir=tmp_path)
        sb, pid, broken = asyncio.run(leave(first))
        first.process.kill()
        first.process.wait()
        whole = broken.read_text()
        broken.write_text('{"version": 99}')
        second = start_agent(data_dir=tmp_path)
        try:
            asyncio.run(look(second, sb, pid, broken, whole))
        finally:
            assert stop(second) == 0
        reap_orphans()


def test_destroying_it_ends_a_machine_that_cannot_be_taken_over(start_agent, tmp_path: Path) -> None:
    async def leave(agent) -> tuple[str, int]:
        async with connected(agent) as client:
            sb = (await client.create()).sandbox_id
            return sb, vmm_pid(agent, sb)

    async def look(agent, sb: str) -> None:
        async with connected(agent) as client:
            await eventually(lambda: "cannot be taken over yet" in agent.log(), "it was tried")
            await client.destroy(sb)
            assert await client.listed() == {}

    with clean(tmp_path):
        first = start_agent(data_dir=tmp_path)
        sb, pid = asyncio.run(leave(first))
        first.process.kill()
        first.process.wait()
        (tmp_path / "run" / sb / "sandbox.json").write_text("of another version")
        second = start_agent(data_dir=tmp_path)
        try:
            asyncio.run(look(second, sb))
        finally:
            assert stop(second) == 0
        reap_orphans()
        assert not Path(f"/proc/{pid}").exists()


def test_an_agent_that_took_nothing_over_leaves_all_to_the_next(start_agent, tmp_path: Path) -> None:
    async def leave(agent) -> tuple[str, int]:
        async with connected(agent) as client:
            sb = (await client.create()).sandbox_id
            return sb, vmm_pid(agent, sb)

    async def look(agent, sb: str, pid: int) -> None:
        async with connected(agent) as client:
            assert (await client.exec(sb, "echo", "on")).stdout == b"on\n" and vmm_pid(agent, sb) == pid
            await client.destroy(sb)

    with clean(tmp_path):
        first = start_agent(data_dir=tmp_path)
        sb, pid = asyncio.run(leave(first))
        first.process.kill()
        first.process.wait()
        record = tmp_path / "run" / sb / "sandbox.json"
        whole = record.read_text()
        record.write_text("of another version")
        second = start_agent(data_dir=tmp_path)
        asyncio.run(eventually(lambda: "cannot be taken over yet" in second.log(), "it was tried"))
        assert stop(second) == 0 and Path(f"/proc/{pid}").exists()
        record.write_text(whole)
        third = start_agent(data_dir=tmp_path)
        try:
            asyncio.run(look(third, sb, pid))
        finally:
            assert stop(third) == 0
        reap_orphans()


def test_an_upgrade_strands_nobody(start_agent, images: Path, tmp_path: Path) -> None:
    """Two runtimes side by side: what ran goes on, what was paused resumes from what it was made with."""
    catalog = Catalog(images)
    old = catalog.current()
    new = ArtefactSet("r2", "k2", "6.12", "i2", "t2", "rootfs2")

    async def leave(agent) -> tuple[str, str]:
        async with connected(agent) as client:
            living, paused = (await client.create()).sandbox_id, (await client.create()).sandbox_id
            await client.pause(paused)
            return living, paused

    async def look(agent, living: str, paused: str) -> None:
        def made_with(build: pb.Build) -> ArtefactSet:
            return read_manifest(agent.data_dir / "builds" / build.build_id).artefacts

        async with connected(agent) as client:
            listed = await client.listed()
            assert {key: info.status for key, info in listed.items()} == {living: "running", paused: "paused"}
            await client.resume(paused, listed[paused].build_id)
            fresh = (await client.create()).sandbox_id
            for sandbox, artefacts in ((living, old), (paused, old), (fresh, new)):
                assert (await client.exec(sandbox, "echo", "on")).stdout == b"on\n"
                build = await client.pause(sandbox)
                assert made_with(build) == artefacts
                await client.resume(sandbox, build.build_id)
                await client.pause(sandbox)
            rootfs = catalog.rootfs(old.rootfs)
            rootfs.rename(rootfs.with_name("elsewhere"))
            try:
                with pytest.raises(Conflict) as refused:
                    await client.resume(paused, (await client.listed())[paused].build_id)
            finally:
                rootfs.with_name("elsewhere").rename(rootfs)
            assert refused.value.slug == "build_incompatible" and old.rootfs in refused.value.message
            for sandbox in (living, paused, fresh):
                await client.resume(sandbox, (await client.listed())[sandbox].build_id)
                await client.destroy(sandbox)

    with clean(tmp_path):
        first = start_agent(data_dir=tmp_path)
        left = asyncio.run(leave(first))
        first.process.kill()
        first.process.wait()
        catalog.rootfs(new.rootfs).parent.mkdir()
        catalog.rootfs(new.rootfs).write_bytes(bytes(2 << 20))
        catalog.set_current(new)
        try:
            second = start_agent(data_dir=tmp_path)
            try:
                asyncio.run(look(second, *left))
            finally:
                assert stop(second) == 0
        finally:
            catalog.set_current(old)
            shutil.rmtree(catalog.rootfs(new.rootfs).parent)
        reap_orphans()


def children(pid: int) -> list[int]:
    """The processes directly below one."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def reap_orphans() -> None:
    """Those of a killed agent are this process's to reap."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def test_two_agents_do_not_share_a_data_directory(start_agent, tmp_path: Path) -> None:
    with clean(tmp_path):
        first = start_agent(data_dir=tmp_path)
        try:
            with pytest.raises(AssertionError, match="Another host agent uses"):
                start_agent(data_dir=tmp_path)
        finally:
            assert stop(first) == 0


def test_a_wrong_start_says_what_is_wrong(start_agent, tmp_path: Path) -> None:
    with clean(tmp_path / "missing"):
        (tmp_path / "missing" / "run").mkdir(parents=True)
        with pytest.raises(AssertionError, match="HOST:PORT"):
            start_agent("--listen", "nowhere", data_dir=tmp_path / "missing")
