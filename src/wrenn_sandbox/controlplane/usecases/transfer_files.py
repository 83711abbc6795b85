"""Move file contents in and out of a sandbox, a chunk at a time: memory does not grow with the file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from protobuf import Oneof

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.find_sandboxes import find_usable
from wrenn_sandbox.core.errors import Invalid, WrennError
from wrenn_sandbox.core.ids import SandboxId, TeamId
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

MAX_PATH_BYTES = 4096
#: Larger pieces of a body are cut; the host's limit for one message is far above.
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a sandbox, as ``user`` sees it (relative: below that user's home)."""

    path: str
    user: str = ""


def check_path(path: str) -> None:
    """Raise Invalid (``invalid_path``) for what can name no file, or tries to climb."""
    if not path:
        raise Invalid("path must not be empty.", slug="invalid_path")
    if "\0" in path:
        raise Invalid("path must not contain a NUL character.", slug="invalid_path")
    if ".." in path.split("/"):
        raise Invalid("path must not contain '..'; write the path that is meant.", slug="invalid_path")
    if len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise Invalid(f"path must not be longer than {MAX_PATH_BYTES} bytes.", slug="invalid_path")


async def open_file(platform: Platform, team: TeamId, sandbox: SandboxId, place: Place) -> AsyncGenerator[bytes, None]:
    """The content of a file. An error that is known before the first byte is raised here, not by the iteration."""
    check_path(place.path)
    await find_usable(platform, team, sandbox)
    chunks = _chunks(platform, pb.ReadFileStreamRequest(sandbox_id=str(sandbox), path=place.path, user=place.user))
    first = await anext(chunks, b"")
    return _from_first(first, chunks)


async def _chunks(platform: Platform, request: pb.ReadFileStreamRequest) -> AsyncGenerator[bytes, None]:
    async with aclosing(platform.agent.stream("ReadFileStream", request, pb.ReadFileStreamResponse)) as messages:
        async for message in messages:
            yield message.chunk


async def _from_first(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


async def write_file(
    platform: Platform, team: TeamId, sandbox: SandboxId, place: Place, content: AsyncIterator[bytes]
) -> None:
    """Write a file from ``content``. An error that ``content`` raises breaks the transfer off and is raised again."""
    check_path(place.path)
    await find_usable(platform, team, sandbox)
    upload = _Upload(sandbox, place, content)
    try:
        await platform.agent.send_stream("WriteFileStream", upload.messages(), pb.WriteFileStreamResponse)
    except WrennError:
        if upload.failure is not None:
            raise upload.failure
        raise


class _Upload:
    """The messages of one upload, and the error of its source, which the RPC library would swallow."""

    def __init__(self, sandbox: SandboxId, place: Place, content: AsyncIterator[bytes]) -> None:
        self._sandbox, self._place, self._content = sandbox, place, content
        self.failure: Exception | None = None

    async def messages(self) -> AsyncIterator[pb.WriteFileStreamRequest]:
        meta = pb.WriteFileStreamMeta(sandbox_id=str(self._sandbox), path=self._place.path, user=self._place.user)
        head: Oneof[Literal["meta"], pb.WriteFileStreamMeta] = Oneof(field="meta", value=meta)
        yield pb.WriteFileStreamRequest(content=head)
        try:
            async for chunk in self._content:
                for start in range(0, len(chunk), CHUNK_BYTES):
                    piece = chunk[start : start + CHUNK_BYTES]
                    part: Oneof[Literal["chunk"], bytes] = Oneof(field="chunk", value=piece)
                    yield pb.WriteFileStreamRequest(content=part)
        except Exception as error:
            self.failure = error
            raise
