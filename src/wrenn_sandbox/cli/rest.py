"""Bring the host agent to rest before it is ended: every sandbox paused durably, or, if so asked, destroyed."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp

from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.rpc.channel import Channel
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

SERVICE = "hostagent.v1.HostAgentService"
REST_LIMIT_S = 60
#: From the agent's own limit to the end of our patience with it.
_GRACE_S = 15


async def bring_to_rest(url: str, token: str, say: Callable[[str], None], *, kill: bool) -> None:
    """Returns when nothing runs any more, or when no more can be done; ``say`` hears how far it is. Raises nothing."""
    action = pb.TimeoutAction.KILL if kill else pb.TimeoutAction.PAUSE
    request = pb.DrainRequest(action=action, limit_s=REST_LIMIT_S)
    timeout = aiohttp.ClientTimeout(total=REST_LIMIT_S + _GRACE_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            channel = Channel(session, url, SERVICE, {"authorization": f"Bearer {token}"})
            async with channel.server_stream(
                "Drain", request, pb.DrainResponse, timeout_s=REST_LIMIT_S + _GRACE_S
            ) as answers:
                said = ""
                async for answer in answers:
                    if (now := progress(answer, kill=kill)) not in ("", said):
                        say(now)
                    said = now
    except WrennError as error:
        say(f"the host agent does not answer ({error.message}); what runs is taken over by the next `wrenn up`")


def progress(answer: pb.DrainResponse, *, kill: bool) -> str:
    """One line; empty when there is nothing to tell."""
    if not answer.total:
        return ""
    doing, done = ("destroying", "destroyed") if kill else ("pausing", "paused")
    left = answer.total - answer.done - answer.failed
    if left:
        return f"{doing} what runs: {answer.done} of {answer.total}"
    if answer.failed:
        return (
            f"{answer.done} of {answer.total} sandboxes {done}; {answer.failed} could not be and run on: "
            "the next `wrenn up` takes them over, its log says why"
        )
    return f"{answer.total} of {answer.total} sandboxes {done}"
