"""Moments of sandboxes over real processes: guests that are not quiet, and what many of them leave in the agent."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from tests.platform.hostagent.conftest import Agent, Client, eventually, vmm_pid
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

pytestmark = pytest.mark.platform


def test_a_guest_that_hangs_is_paused_as_it_is(run, agent: Agent) -> None:
    async def work(client: Client) -> None:
        async with client.sandbox() as sandbox:
            os.kill(vmm_pid(agent, sandbox), signal.SIGSTOP)
            build = await client.pause(sandbox)
            assert (await client.listed())[sandbox].status == "paused"
            await client.resume(sandbox, build.build_id)
            assert (await client.exec(sandbox, "echo", "on")).stdout == b"on\n"
        assert "guest not quiet" in agent.log()

    run(work)


def test_an_agent_is_the_same_after_many_moments(run, agent: Agent) -> None:
    async def round_(client: Client, sandbox: str) -> None:
        template = str(uuid4())
        await client.snapshot(sandbox, template)
        forked = await client.fork(sandbox, 1)
        back = (await client.listed())[sandbox].build_id
        await client.rollback(sandbox, back)
        build = await client.pause(sandbox)
        await client.resume(sandbox, build.build_id)
        for child in forked.children:
            await client.destroy(child.sandbox_id)
        await forget(client, template)

    async def work(client: Client) -> None:
        async with client.sandbox() as sandbox:
            await round_(client, sandbox)  # what is only opened once, is by now
            await eventually(lambda: deleted_files(agent) == [], "what is removed is closed")
            before = held(agent)
            for _ in range(4):
                await round_(client, sandbox)
            await eventually(lambda: deleted_files(agent) == [], "what is removed is closed")
            await eventually(lambda: held(agent) <= before, f"no more descriptors than {before}")

    run(work)


async def forget(client: Client, template: str) -> None:
    await client.call("DeleteSnapshot", pb.DeleteSnapshotRequest(template_id=template), pb.DeleteSnapshotResponse)


def held(agent: Agent) -> int:
    """Descriptors of the agent, but for those of connections to it."""
    return sum(not target.startswith("socket:") for target in targets(agent))


def deleted_files(agent: Agent) -> list[str]:
    """Removed files that it still has open."""
    return [target for target in targets(agent) if target.endswith(" (deleted)") and str(agent.data_dir) in target]


def targets(agent: Agent) -> list[str]:
    found = []
    for path in Path(f"/proc/{agent.process.pid}/fd").iterdir():
        try:
            found.append(str(path.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def test_twenty_children_at_once_and_none_is_left(run, agent: Agent) -> None:
    async def work(client: Client) -> None:
        async with client.sandbox(memory_mb=256) as sandbox:
            forked = await client.fork(sandbox, 20)
            children = [child.sandbox_id for child in forked.children]
            assert len({child.host_ip for child in forked.children}) == 20
            listed = await client.listed()
            assert {listed[child].status for child in children} == {"running"}
            async with asyncio.TaskGroup() as group:
                for child in children:
                    group.create_task(client.destroy(child))
        assert await client.listed() == {}

    run(work)
