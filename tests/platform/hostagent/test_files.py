from __future__ import annotations

from pathlib import Path

import pytest
from protobuf import Oneof

from tests.platform.hostagent.conftest import eventually
from wrenn_sandbox.core.errors import Invalid, NotFound, Timeout, TooLarge
from wrenn_sandbox.hostagent.service.files import MAX_WHOLE_FILE_BYTES
from wrenn_sandbox.rpc.gen.hostagent.v1 import hostagent_pb as pb

pytestmark = pytest.mark.platform


async def write(client, sb: str, path: str, content: bytes) -> None:
    request = pb.WriteFileRequest(sandbox_id=sb, path=path, content=content)
    await client.channel.unary("WriteFile", request, pb.WriteFileResponse)


async def read(client, sb: str, path: str) -> bytes:
    request = pb.ReadFileRequest(sandbox_id=sb, path=path)
    return (await client.channel.unary("ReadFile", request, pb.ReadFileResponse)).content


async def chunks(sb: str, path: str, piece: bytes, count: int):
    yield pb.WriteFileStreamRequest(content=Oneof("meta", pb.WriteFileStreamMeta(sandbox_id=sb, path=path)))
    for _ in range(count):
        yield pb.WriteFileStreamRequest(content=Oneof("chunk", piece))


def test_what_is_written_is_read(run, tmp_path: Path) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            for content in (b"", b"x", bytes(range(256)) * 10_000):
                path = str(tmp_path / "made" / "below" / "file")
                await write(client, sb, path, content)
                assert await read(client, sb, path) == content

    run(work)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/no/such", NotFound), ("/tmp", Invalid), ("/dev/zero", Invalid), ("/a/../b", Invalid), ("", Invalid)],
)
def test_what_cannot_be_read_says_why(run, path: str, kind: type[Exception]) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            with pytest.raises(kind):
                await read(client, sb, path)
            request = pb.ReadFileStreamRequest(sandbox_id=sb, path=path)
            with pytest.raises(kind):
                async with client.channel.server_stream("ReadFileStream", request, pb.ReadFileStreamResponse) as pieces:
                    await anext(pieces)

    run(work)


def test_whole_files_have_a_limit_and_streams_have_none(run, tmp_path: Path) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            path = tmp_path / "large"
            with path.open("wb") as file:
                file.truncate(MAX_WHOLE_FILE_BYTES + 1)
            with pytest.raises(TooLarge):
                await read(client, sb, str(path))
            with pytest.raises(TooLarge):
                await write(client, sb, str(tmp_path / "other"), bytes(MAX_WHOLE_FILE_BYTES + 1))
            assert not (tmp_path / "other").exists()
            request = pb.ReadFileStreamRequest(sandbox_id=sb, path=str(path))
            async with client.channel.server_stream("ReadFileStream", request, pb.ReadFileStreamResponse) as pieces:
                sizes = [len(piece.chunk) async for piece in pieces]
            assert sum(sizes) == MAX_WHOLE_FILE_BYTES + 1 and max(sizes) <= 64 * 1024

    run(work)


def test_streams_need_little_memory_both_ways(run, agent, tmp_path: Path) -> None:
    async def work(client) -> None:
        async with client.sandbox() as sb:
            path, piece, count = str(tmp_path / "stream"), bytes(1 << 20), 400
            await write(client, sb, path, b"warm")
            before_kib = agent.resident_kib()
            await client.channel.client_stream(
                "WriteFileStream", chunks(sb, path, piece, count), pb.WriteFileStreamResponse
            )
            assert Path(path).stat().st_size == count << 20
            request = pb.ReadFileStreamRequest(sandbox_id=sb, path=path)
            async with client.channel.server_stream("ReadFileStream", request, pb.ReadFileStreamResponse) as pieces:
                total = sum([len(p.chunk) async for p in pieces])
            assert total == count << 20
            assert agent.resident_kib() - before_kib < 64 * 1024

    run(work)


def connections_to(host_ip: str) -> int:
    """Open TCP connections of this machine to envd there (proc_net(5): hex, little-endian; 01 is ESTABLISHED)."""
    packed = "".join(f"{int(part):02X}" for part in reversed(host_ip.split(".")))
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(1 for line in lines if line.split()[2] == f"{packed}:{49983:04X}" and line.split()[3] == "01")


def test_a_reader_that_leaves_or_is_out_of_time_ends_the_reading_in_the_guest(run, tmp_path: Path) -> None:
    async def work(client) -> None:
        created = await client.create()
        path = tmp_path / "endless"
        with path.open("wb") as file:
            file.truncate(1 << 40)
        request = pb.ReadFileStreamRequest(sandbox_id=created.sandbox_id, path=str(path))
        idle = connections_to(created.host_ip)
        async with client.channel.server_stream("ReadFileStream", request, pb.ReadFileStreamResponse) as pieces:
            await anext(pieces)
            assert connections_to(created.host_ip) > 0
        await eventually(lambda: connections_to(created.host_ip) <= idle, "the connection to envd is closed")
        with pytest.raises(Timeout):
            async with client.channel.server_stream(
                "ReadFileStream", request, pb.ReadFileStreamResponse, timeout_s=0.5
            ) as pieces:
                async for _ in pieces:
                    pass
        await eventually(lambda: connections_to(created.host_ip) <= idle, "the connection to envd is closed")
        await client.destroy(created.sandbox_id)

    run(work)


def test_a_stream_begins_with_where_to(run, tmp_path: Path) -> None:
    async def headless():
        yield pb.WriteFileStreamRequest(content=Oneof("chunk", b"x"))

    async def twice(sb: str):
        for name in ("a", "b"):
            meta = pb.WriteFileStreamMeta(sandbox_id=sb, path=str(tmp_path / name))
            yield pb.WriteFileStreamRequest(content=Oneof("meta", meta))

    async def work(client) -> None:
        async with client.sandbox() as sb:
            for requests in (headless(), twice(sb)):
                with pytest.raises(Invalid) as refused:
                    await client.channel.client_stream("WriteFileStream", requests, pb.WriteFileStreamResponse)
                assert refused.value.slug == "invalid_stream"

    run(work)
