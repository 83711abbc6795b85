"""Agents of their own: how one starts, ends, dies and is followed by another."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.platform.hostagent.conftest import clean, connected, eventually, stop, vmm_pid
from wrenn_sandbox.core.errors import Exhausted
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


def test_sigterm_destroys_all_and_exits_with_0(start_agent, tmp_path: Path) -> None:
    async def work(agent) -> None:
        async with connected(agent) as client:
            for _ in range(3):
                sb = (await client.create()).sandbox_id
                start = pb.StartBackgroundRequest(sandbox_id=sb, cmd="sleep", args=["600"])
                await client.channel.unary("StartBackground", start, pb.StartBackgroundResponse)

    with clean(tmp_path):
        agent = start_agent(data_dir=tmp_path)
        asyncio.run(work(agent))
        assert stop(agent) == 0
        assert not (tmp_path / "ready.json").exists()


def test_an_agent_sweeps_what_a_killed_one_left(start_agent, tmp_path: Path) -> None:
    async def leave(agent) -> int:
        async with connected(agent) as client:
            sb = (await client.create()).sandbox_id
            start = pb.StartBackgroundRequest(sandbox_id=sb, cmd="sleep", args=["600"])
            await client.channel.unary("StartBackground", start, pb.StartBackgroundResponse)
            return vmm_pid(agent, sb)

    async def look(agent, pid: int) -> None:
        async with connected(agent) as client:
            await eventually(lambda: dead(pid), "the VMM is dead")
            assert await client.listed() == {}
            async with client.sandbox() as sb:
                assert (await client.exec(sb, "true")).exit_code == 0

    with clean(tmp_path):
        first = start_agent(data_dir=tmp_path)
        pid = asyncio.run(leave(first))
        first.process.kill()
        first.process.wait()
        assert Path(f"/proc/{pid}").exists(), "a VMM outlives its agent"
        second = start_agent(data_dir=tmp_path)
        try:
            asyncio.run(look(second, pid))
        finally:
            assert stop(second) == 0
        reap_orphans()


def dead(pid: int) -> bool:
    """Gone, or waiting for somebody to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


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
