from __future__ import annotations

from types import SimpleNamespace

import pytest
from protobuf import Oneof

from tests.unit.hostagent.service.fakes import CONTEXT, ID, Registry, Source
from wrenn_sandbox.core.errors import Invalid, Timeout, TooLarge
from wrenn_sandbox.hostagent.service import files as module
from wrenn_sandbox.hostagent.service.files import FileCalls
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb


def read_request(path: str = "/a") -> pb.ReadFileRequest:
    return pb.ReadFileRequest(sandbox_id=str(ID), path=path)


def meta(path: str = "/a") -> pb.WriteFileStreamRequest:
    return pb.WriteFileStreamRequest(content=Oneof("meta", pb.WriteFileStreamMeta(sandbox_id=str(ID), path=path)))


def chunk(data: bytes) -> pb.WriteFileStreamRequest:
    return pb.WriteFileStreamRequest(content=Oneof("chunk", data))


async def stream(*messages: pb.WriteFileStreamRequest):
    for message in messages:
        yield message


def test_a_whole_file_each_way(run) -> None:
    async def work() -> None:
        registry = Registry(source=Source([b"ab", b"c"], size=3))
        assert (await FileCalls(registry).read_file(read_request(), CONTEXT)).content == b"abc"
        request = pb.WriteFileRequest(sandbox_id=str(ID), path="/a", content=b"xyz", user="root")
        await FileCalls(registry).write_file(request, CONTEXT)
        assert registry.written == [("/a", "root", b"xyz")] and registry.in_use == 0

    run(work)


@pytest.mark.parametrize("size", [5, None])
def test_whole_files_have_a_limit_whether_or_not_the_size_is_known(
    run, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    async def work() -> None:
        monkeypatch.setattr(module, "MAX_WHOLE_FILE_BYTES", 4)
        registry = Registry(source=Source([b"abc", b"de"], size=size))
        with pytest.raises(TooLarge):
            await FileCalls(registry).read_file(read_request(), CONTEXT)
        with pytest.raises(TooLarge):
            request = pb.WriteFileRequest(sandbox_id=str(ID), path="/a", content=b"abcde")
            await FileCalls(registry).write_file(request, CONTEXT)
        assert registry.written == []

    run(work)


def test_streams_pass_piece_by_piece(run) -> None:
    async def work() -> None:
        registry = Registry(source=Source([b"ab", b"c"]))
        request = pb.ReadFileStreamRequest(sandbox_id=str(ID), path="/a")
        pieces = [answer.chunk async for answer in FileCalls(registry).read_file_stream(request, CONTEXT)]
        assert pieces == [b"ab", b"c"]
        await FileCalls(registry).write_file_stream(stream(meta(), chunk(b"x"), chunk(b"y")), CONTEXT)
        assert registry.written == [("/a", "", b"xy")]

    run(work)


def test_reading_ends_when_the_time_is_over(run) -> None:
    async def work() -> None:
        registry = Registry(source=Source([b"a"] * 100))
        request = pb.ReadFileStreamRequest(sandbox_id=str(ID), path="/a")
        seen = []
        with pytest.raises(Timeout) as late:
            async for answer in FileCalls(registry).read_file_stream(request, SimpleNamespace(timeout_ms=0)):
                seen.append(answer.chunk)
        assert late.value.slug == "deadline_exceeded" and seen == [b"a"] and registry.in_use == 0

    run(work)


def test_the_first_message_of_a_write_is_meta_and_no_other(run) -> None:
    async def work() -> None:
        for messages in ([chunk(b"x"), meta()], [meta(), meta()], [], [meta(), pb.WriteFileStreamRequest()]):
            registry = Registry()
            with pytest.raises(Invalid) as refused:
                await FileCalls(registry).write_file_stream(stream(*messages), CONTEXT)
            assert refused.value.slug == "invalid_stream" and registry.written == []

    run(work)


@pytest.mark.parametrize("path", ["", "/a/../b", "/a\0"])
def test_paths_are_checked_in_every_call(run, path: str) -> None:
    async def work() -> None:
        calls, registry = FileCalls(Registry()), Registry()
        with pytest.raises(Invalid):
            await calls.read_file(read_request(path), CONTEXT)
        with pytest.raises(Invalid):
            await calls.write_file(pb.WriteFileRequest(sandbox_id=str(ID), path=path), CONTEXT)
        with pytest.raises(Invalid):
            await anext(calls.read_file_stream(pb.ReadFileStreamRequest(sandbox_id=str(ID), path=path), CONTEXT))
        with pytest.raises(Invalid):
            await calls.write_file_stream(stream(meta(path)), CONTEXT)
        assert registry.uses == 0

    run(work)
