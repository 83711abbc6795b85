from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from wrenn_sandbox.controlplane.agent import HostAgent, NotAsked
from wrenn_sandbox.core.errors import Conflict, Timeout, Unauthenticated, Unavailable, WrennError
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


class Channel:
    """Fails with what it is given."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    async def unary(self, *_: Any, **__: Any) -> Any:
        if self.error is not None:
            raise self.error
        return pb.ExecResponse(exit_code=3)

    @asynccontextmanager
    async def server_stream(self, *_: Any, **__: Any) -> AsyncIterator[AsyncIterator[Any]]:
        async def messages() -> AsyncIterator[Any]:
            yield pb.ExecStreamResponse()
            if self.error is not None:
                raise self.error

        yield messages()

    async def client_stream(self, *_: Any, **__: Any) -> Any:
        return await self.unary()


def agent_with(error: BaseException | None) -> HostAgent:
    agent = HostAgent("http://a", "token", None)  # type: ignore[arg-type]
    agent._channel = Channel(error)  # type: ignore[assignment]
    return agent


def local_timeout() -> Timeout:
    error = Timeout("The peer did not answer in time.")
    error.__cause__ = TimeoutError()
    return error


async def all_ways(agent: HostAgent) -> list[object]:
    """What each kind of call raises, or returns."""
    outcomes: list[object] = []
    request = pb.ExecRequest()

    async def stream() -> object:
        async with aclosing(agent.stream("ExecStream", request, pb.ExecStreamResponse)) as messages:
            return [m async for m in messages]

    for call in (
        agent.call("Exec", request, pb.ExecResponse),
        stream(),
        agent.send_stream("WriteFileStream", aiter_of(), pb.WriteFileStreamResponse),
    ):
        try:
            outcomes.append(await call)
        except WrennError as error:
            outcomes.append(error)
    return outcomes


async def aiter_of() -> AsyncIterator[Any]:
    yield pb.WriteFileStreamRequest()


@pytest.mark.parametrize(
    "error",
    [Unavailable("x", slug="peer_unreachable"), Unavailable("x", slug="peer_broken"), local_timeout()],
)
def test_a_silent_agent_is_an_unavailable_host(error: WrennError) -> None:
    for outcome in asyncio.run(all_ways(agent_with(error))):
        assert isinstance(outcome, Unavailable) and outcome.slug == "host_unavailable" and outcome.retry_after_s > 0
        assert isinstance(outcome, NotAsked) is (error.slug == "peer_unreachable")


@pytest.mark.parametrize("error", [Conflict("busy"), Timeout("the command's own"), Unavailable("x", slug="guest_down")])
def test_what_the_agent_says_itself_passes(error: WrennError) -> None:
    assert asyncio.run(all_ways(agent_with(error))) == [error] * 3


def test_a_wrong_token_is_our_fault_not_the_callers() -> None:
    for outcome in asyncio.run(all_ways(agent_with(Unauthenticated("token")))):
        assert isinstance(outcome, Unavailable) and "token" in outcome.message


def test_answers_pass() -> None:
    answer, messages, written = asyncio.run(all_ways(agent_with(None)))
    assert answer == written and messages == [pb.ExecStreamResponse()]
