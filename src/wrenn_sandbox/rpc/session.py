"""HTTP sessions that end what is still being read through them.

When an aiohttp session is closed, the reader of an answer that has not ended is told nothing and waits for ever
(aiohttp 3.14, ``ResponseHandler.close`` forgets the payload). A sandbox that ends has such readers: a terminal, a
command, a stream of events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakSet

import aiohttp


@asynccontextmanager
async def breaking_session(**options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A session; when it is left, whoever still reads an answer gets aiohttp's ClientConnectionError at once."""
    answers: WeakSet[aiohttp.ClientResponse] = WeakSet()

    class Answer(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            answers.add(self)
            return await super().start(connection)

    async with aiohttp.ClientSession(response_class=Answer, **options) as session:
        try:
            yield session
        finally:
            for answer in list(answers):
                if answer.content is not None and not answer.content.is_eof():
                    answer.content.set_exception(aiohttp.ClientConnectionError("This end was closed."))
