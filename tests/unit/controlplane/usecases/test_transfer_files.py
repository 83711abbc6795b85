from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from tests.unit.controlplane.usecases.test_find_sandboxes import made
from wrenn_sandbox.controlplane.usecases.transfer_files import CHUNK_BYTES, Place, check_path, open_file, write_file
from wrenn_sandbox.core.errors import Canceled, Invalid, NotFound, Unavailable
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

PLACE = Place("/a", "user")


def chunk(data: bytes) -> pb.ReadFileStreamResponse:
    return pb.ReadFileStreamResponse(chunk=data)


@pytest.mark.parametrize("path", ["", "a\0", "..", "../a", "a/..", "/a/../b", "x" * 4097, "é" * 2049])
def test_paths_that_name_no_file_or_climb(path: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_path(path)
    assert caught.value.slug == "invalid_path"


@pytest.mark.parametrize("path", ["a", "/a/b", "a..b", "...", ".", "/", " ", "x" * 4096])
def test_all_others_are_the_guests_to_judge(path: str) -> None:
    check_path(path)


def test_an_error_before_the_first_byte_is_raised_at_once(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["ReadFileStream"] = [NotFound("no such file")]
            with pytest.raises(NotFound):
                await open_file(w.platform, w.team, row.id, PLACE)
            assert w.agent.closed_streams == ["ReadFileStream"]

    asyncio.run(main())


@pytest.mark.parametrize("chunks", [[], [b"a"], [b"a", b"b", b"c"]])
def test_a_file_comes_whole(world, chunks: list[bytes]) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["ReadFileStream"] = [chunk(data) for data in chunks]
            async with aclosing(await open_file(w.platform, w.team, row.id, PLACE)) as content:
                assert b"".join([data async for data in content]) == b"".join(chunks)

    asyncio.run(main())


def test_a_reader_who_leaves_closes_the_stream(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            w.agent.answers["ReadFileStream"] = [chunk(b"a"), chunk(b"b"), ...]
            async with aclosing(await open_file(w.platform, w.team, row.id, PLACE)) as content:
                assert await anext(content) == b"a"
            assert w.agent.closed_streams == ["ReadFileStream"]

    asyncio.run(main())


async def source(*pieces: bytes | Exception) -> AsyncIterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


def test_a_write_says_where_first_and_cuts_big_pieces(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            big = b"x" * (2 * CHUNK_BYTES + 1)
            await write_file(w.platform, w.team, row.id, PLACE, source(b"a", big))
            (messages,) = w.agent.requests("WriteFileStream")
            meta, *rest = [message.content for message in messages]
            assert meta.field == "meta" and (meta.value.path, meta.value.user) == ("/a", "user")
            assert [len(part.value) for part in rest] == [1, CHUNK_BYTES, CHUNK_BYTES, 1]

    asyncio.run(main())


def test_an_error_of_the_source_comes_out_as_itself(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)
            with pytest.raises(Canceled):
                await write_file(w.platform, w.team, row.id, PLACE, source(b"a", Canceled("gone")))

    asyncio.run(main())


def test_the_channels_word_for_it_does_not_hide_the_sources(world) -> None:
    async def main() -> None:
        async with world() as w:
            row = await made(w)

            async def swallow(method: str, requests: AsyncIterator[object], answer: object) -> None:
                try:
                    async for _ in requests:
                        pass
                except Exception as error:  # as an HTTP client does
                    raise Unavailable("broke off") from error

            w.agent.send_stream = swallow
            with pytest.raises(Invalid):
                await write_file(w.platform, w.team, row.id, PLACE, source(Invalid("bad form")))

    asyncio.run(main())
