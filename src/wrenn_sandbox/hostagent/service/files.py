"""Calls on files of a guest: whole, for small ones, and as streams with constant memory for any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from wrenn_sandbox.core.errors import Invalid, Timeout, TooLarge
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.hostagent import wire
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

#: Above this a file travels as a stream only.
MAX_WHOLE_FILE_BYTES = 100 * 1024 * 1024


class FileCalls:
    """Read and write."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def read_file(self, request: pb.ReadFileRequest, _ctx: Any) -> pb.ReadFileResponse:
        """A whole file; TooLarge above 100 MiB."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        path, user = wire.path(request.path), wire.user(request.user)
        pieces, size = [], 0
        async with sandbox.use() as parts, parts.guest.reading(path, user) as source:
            _require_small(source.size or 0)
            async for chunk in source.chunks():
                size += len(chunk)
                _require_small(size)
                pieces.append(chunk)
        return pb.ReadFileResponse(content=b"".join(pieces))

    async def write_file(self, request: pb.WriteFileRequest, _ctx: Any) -> pb.WriteFileResponse:
        """A whole file; TooLarge above 100 MiB."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        path, user = wire.path(request.path), wire.user(request.user)
        _require_small(len(request.content))
        async with sandbox.use() as parts:
            await parts.guest.write(path, user, request.content)
        return pb.WriteFileResponse()

    async def read_file_stream(
        self, request: pb.ReadFileStreamRequest, ctx: Any
    ) -> AsyncIterator[pb.ReadFileStreamResponse]:
        """A file in pieces of 64 KiB. A caller that cancels, or whose time is up, ends the reading in the guest too."""
        sandbox = self._registry.get(SandboxId.parse(request.sandbox_id))
        path, user = wire.path(request.path), wire.user(request.user)
        async with sandbox.use() as parts, parts.guest.reading(path, user) as source:
            async for chunk in source.chunks():
                yield pb.ReadFileStreamResponse(chunk=chunk)
                await asyncio.sleep(0)  # a cancel arrives only where something waits, and buffered data never does
                if (left_ms := ctx.timeout_ms) is not None and left_ms <= 0:
                    raise Timeout("The time allowed for reading the file is over.")

    async def write_file_stream(
        self, request: AsyncIterator[pb.WriteFileStreamRequest], _ctx: Any
    ) -> pb.WriteFileStreamResponse:
        """The first message says where to; all others are content."""
        meta = await _meta(request)
        sandbox = self._registry.get(SandboxId.parse(meta.sandbox_id))
        path, user = wire.path(meta.path), wire.user(meta.user)
        async with sandbox.use() as parts:
            await parts.guest.write(path, user, _content(request))
        return pb.WriteFileStreamResponse()


async def _meta(request: AsyncIterator[pb.WriteFileStreamRequest]) -> pb.WriteFileStreamMeta:
    async for message in request:
        if message.content is not None and message.content.field == "meta":
            return message.content.value
        break
    raise Invalid("The first message of WriteFileStream must be meta.", slug="invalid_stream")


async def _content(request: AsyncIterator[pb.WriteFileStreamRequest]) -> AsyncIterator[bytes]:
    async for message in request:
        if message.content is None or message.content.field != "chunk":
            raise Invalid("Only the first message of WriteFileStream may be meta.", slug="invalid_stream")
        yield message.content.value


def _require_small(size: int) -> None:
    if size > MAX_WHOLE_FILE_BYTES:
        raise TooLarge(
            f"A file above {MAX_WHOLE_FILE_BYTES >> 20} MiB travels only as a stream.", slug="file_too_large"
        )
