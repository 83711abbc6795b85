from __future__ import annotations

import asyncio
import time

from wrenn_sandbox.controlplane.usecases.describe_host import SILENT_S, describe_host, host_status
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


def test_the_agents_own_words(world) -> None:
    async def main() -> None:
        async with world() as w:
            w.agent.answers["GetHost"] = pb.GetHostResponse(driver="fake")
            described = await describe_host(w.platform)
            assert described.id == w.platform.host_id and described.answer.driver == "fake"

    asyncio.run(main())


def test_a_host_is_unknown_then_online_then_silent(world) -> None:
    async def main() -> None:
        async with world() as w:
            assert host_status(w.platform) == "unknown"
            w.platform.contact.answered = True
            assert host_status(w.platform) == "online"
            w.platform.contact.last_answer_s = time.monotonic() - SILENT_S
            assert host_status(w.platform) == "silent"

    asyncio.run(main())
