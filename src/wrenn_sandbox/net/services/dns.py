"""A DNS forwarder for one sandbox: its questions go to the host's own resolvers, from the host's side.

Answers pass unchanged, private addresses too, since the firewall closes those ranges whatever name leads to them. Each
question leaves with a fresh id from a port of its own, and only an answer from the asked resolver to the same question
counts (RFC 5452).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import ip_address
from pathlib import Path

import structlog

_log = structlog.get_logger()

PORT = 53
_HEADER_BYTES = 12
_MAX_NAME_BYTES = 255
_MAX_QUERY_BYTES = 4096
_RESPONSE, _OPCODE_MASK, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x0100, 0x0080
_TRY_S = 2.0
_TOTAL_S = 6.0
_IDLE_S = 10.0
_MAX_QUERIES = 64
_MAX_CONNECTIONS = 16
_MAX_RESOLVERS = 3  # resolv.conf(5): MAXNS


class Rcode(IntEnum):
    """Response codes we make ourselves (RFC 1035 §4.1.1)."""

    FORMERR = 1
    SERVFAIL = 2
    NOTIMP = 4
    REFUSED = 5


def question_end(message: bytes) -> int | None:
    """Offset just behind the single question of ``message``; None when it is malformed or holds not exactly one."""
    if len(message) < _HEADER_BYTES or message[4:6] != b"\x00\x01":
        return None
    offset = _HEADER_BYTES
    while offset < len(message) and offset - _HEADER_BYTES < _MAX_NAME_BYTES:
        length = message[offset]
        offset += 1 + length
        if length == 0:
            return offset + 4 if offset + 4 <= len(message) else None
        if length > 63:  # a compression pointer has nothing to point to in a question
            return None
    return None


def refusal_of(query: bytes) -> Rcode | None:
    """The code with which a query must be refused; None when it may be forwarded."""
    if question_end(query) is None:
        return Rcode.FORMERR
    flags = struct.unpack_from("!H", query, 2)[0]
    return Rcode.NOTIMP if flags & _OPCODE_MASK else None


def is_query(message: bytes) -> bool:
    """Whether to answer at all: anything shorter than a header, or itself a response, gets silence."""
    return len(message) >= _HEADER_BYTES and not message[2] & 0x80


def failure(query: bytes, code: Rcode) -> bytes:
    """A response without records, with the query's question when that can be read."""
    end = question_end(query)
    flags = struct.unpack_from("!H", query, 2)[0]
    flags = _RESPONSE | (flags & (_OPCODE_MASK | _RECURSION_DESIRED)) | _RECURSION_AVAILABLE | code
    count = 0 if end is None else 1
    return query[:2] + struct.pack("!HHHHH", flags, count, 0, 0, 0) + query[_HEADER_BYTES : end or _HEADER_BYTES]


def is_answer_to(response: bytes, query: bytes) -> bool:
    """Whether ``response`` has the id and the question of ``query``; an error response may leave the question out."""
    if len(response) < _HEADER_BYTES or response[:2] != query[:2] or not response[2] & 0x80:
        return False
    end = question_end(query)
    if response[4:6] == b"\x00\x00":
        return response[3] & 0x0F != 0
    return end is not None and response[_HEADER_BYTES:end].lower() == query[_HEADER_BYTES:end].lower()


def parse_resolvers(text: str) -> tuple[str, ...]:
    """The ``nameserver`` addresses of a resolv.conf(5), at most three."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            found.append(words[1])
    return tuple(found[:_MAX_RESOLVERS])


@dataclass(slots=True)
class Upstream:
    """The host's resolvers, shared by all slots. ``limit`` bounds the questions under way on this host."""

    path: Path = Path("/etc/resolv.conf")
    port: int = PORT
    limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(512))
    _stamp: tuple[int, int] = (0, 0)
    _resolvers: tuple[str, ...] = ()

    def resolvers(self) -> tuple[str, ...]:
        """The addresses of the file as it is now."""
        try:
            status = os.stat(self.path)  # noqa: PTH116 - one call for both fields
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._resolvers, self._stamp = parse_resolvers(self.path.read_text(errors="replace")), stamp
        except OSError:
            return ()
        return self._resolvers

    async def ask(self, query: bytes, *, stream: bool) -> bytes:
        """The answer with the query's own id; SERVFAIL when no resolver gives one in time."""
        disguised = secrets.token_bytes(2) + query[2:]
        exchange = _exchange_stream if stream else _exchange_datagram
        try:
            async with asyncio.timeout(_TOTAL_S), self.limit:
                for resolver in self.resolvers() * 2:
                    try:
                        async with asyncio.timeout(_TRY_S):
                            response = await exchange(resolver, self.port, disguised)
                    except (OSError, TimeoutError, EOFError):
                        continue
                    return query[:2] + response[2:]
        except TimeoutError:
            pass
        return failure(query, Rcode.SERVFAIL)


class Forwarder:
    """The resolver one sandbox sees. ``open`` follows its policy: a closed sandbox resolves nothing."""

    def __init__(self, upstream: Upstream) -> None:
        self.open = True
        self._upstream = upstream
        self._under_way = 0

    async def resolve(self, query: bytes, *, stream: bool) -> bytes | None:
        """The response to one message; None when it deserves none."""
        if not is_query(query):
            return None
        code = refusal_of(query)
        if code is not None:
            return failure(query, code)
        if not self.open or self._under_way >= _MAX_QUERIES:
            return failure(query, Rcode.SERVFAIL if self.open else Rcode.REFUSED)
        self._under_way += 1
        try:
            return await self._upstream.ask(query, stream=stream)
        finally:
            self._under_way -= 1


@asynccontextmanager
async def serve(forwarder: Forwarder, datagrams: socket.socket, listener: socket.socket) -> AsyncIterator[None]:
    """Serve both sockets (bound, non-blocking) until the context is left, which closes them."""
    loop = asyncio.get_running_loop()
    with datagrams, listener:
        async with asyncio.TaskGroup() as group:
            tasks: set[asyncio.Task[None]] = {group.create_task(_accept(forwarder, listener))}

            def received() -> None:
                for query, address in _pending(datagrams):
                    if len(tasks) > _MAX_QUERIES:
                        continue  # as lost on the way
                    task = group.create_task(_answer_datagram(forwarder, datagrams, query, address))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

            loop.add_reader(datagrams.fileno(), received)
            try:
                yield
            finally:
                loop.remove_reader(datagrams.fileno())
                for task in tasks:
                    task.cancel()


def _pending(datagrams: socket.socket) -> list[tuple[bytes, tuple[str, int]]]:
    """What has arrived, a bounded piece of it; the event loop calls again for the rest."""
    found = []
    for _ in range(16):
        try:
            found.append(datagrams.recvfrom(_MAX_QUERY_BYTES))
        except OSError:  # nothing more, or an ICMP error for an earlier answer
            break
    return found


async def _answer_datagram(
    forwarder: Forwarder, datagrams: socket.socket, query: bytes, address: tuple[str, int]
) -> None:
    try:
        response = await forwarder.resolve(query, stream=False)
        if response is not None:
            with suppress(OSError):  # a full buffer or a closed port loses the answer, as the network may
                datagrams.sendto(response, address)
    except Exception:  # whatever a guest sends, its slot lives on
        _log.exception("dns.query_failed")


async def _accept(forwarder: Forwarder, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    places = asyncio.Semaphore(_MAX_CONNECTIONS)
    async with asyncio.TaskGroup() as group:
        while True:
            await places.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # the client was gone again, or no descriptors are left
                places.release()
                await asyncio.sleep(0.1)
                continue
            group.create_task(_serve_connection(forwarder, connection, places))


async def _serve_connection(forwarder: Forwarder, connection: socket.socket, places: asyncio.Semaphore) -> None:
    """Answer the messages of one connection one after the other, each with its length before it (RFC 1035 §4.2.2)."""
    try:
        with connection:
            reader, writer = await asyncio.open_connection(sock=connection)
            try:
                while True:
                    async with asyncio.timeout(_IDLE_S):
                        query = await _read_message(reader)
                    response = await forwarder.resolve(query, stream=True)
                    if response is None:
                        return
                    writer.write(struct.pack("!H", len(response)) + response)
                    async with asyncio.timeout(_IDLE_S):
                        await writer.drain()
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError):
        return
    except Exception:  # whatever a guest sends, its slot lives on
        _log.exception("dns.connection_failed")
    finally:
        places.release()


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("!H", await reader.readexactly(2))
    return await reader.readexactly(length)


async def _exchange_stream(resolver: str, port: int, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(resolver, port)
    try:
        writer.write(struct.pack("!H", len(query)) + query)
        await writer.drain()
        response = await _read_message(reader)
    finally:
        writer.close()
    if not is_answer_to(response, query):
        raise EOFError("the resolver answered another question")
    return response


async def _exchange_datagram(resolver: str, port: int, query: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    protocol = _Question(query, loop.create_future())
    transport, _ = await loop.create_datagram_endpoint(lambda: protocol, remote_addr=(resolver, port))
    try:
        transport.sendto(query)
        return await protocol.response
    finally:
        transport.close()


class _Question(asyncio.DatagramProtocol):
    """One query under way from a connected socket of its own; anything but its answer is passed over."""

    def __init__(self, query: bytes, response: asyncio.Future[bytes]) -> None:
        self._query = query
        self.response = response

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        if not self.response.done() and is_answer_to(data, self._query):
            self.response.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.response.done():
            self.response.set_exception(exc)
