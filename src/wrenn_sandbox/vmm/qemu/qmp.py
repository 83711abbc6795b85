"""One QEMU's control connection: the qemu.qmp library with a time limit on every command and our errors.

The socket is bound by the agent in the machine's directory and its listening end inherited by QEMU, so the jail holds
no path to it and a later agent can connect again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.vmm.qemu.argv import STATE_FDSET

SOCKET = "qmp.sock"
COMMAND_LIMIT_S = 10.0
CONNECT_LIMIT_S = 20.0
_BYE_LIMIT_S = 2.0


@contextmanager
def listening(directory: Path) -> Iterator[socket.socket]:
    """The listening socket for a QEMU to inherit; the path stays, the descriptor goes with the context."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, _short_path(directory) as path:
        server.bind(path)
        server.listen(1)
        yield server


@contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """A name for the socket that fits the 107 bytes of sun_path (unix(7)), however deep the data directory is."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


class Monitor:
    """A connected control socket. Made by ``connected``."""

    def __init__(self, name: str, client: QMPClient, connection: socket.socket) -> None:
        self._name = name
        self._client = client
        self._connection = connection
        self._turn = asyncio.Lock()
        self._last_fdset = STATE_FDSET
        # The library keeps every event it hears for ever; a guest can cause them at will.
        client.events.event_filter = lambda _: False

    async def execute(self, command: str, **arguments: object) -> object:
        """Run one command within COMMAND_LIMIT_S.

        Raises Unavailable: ``vmm_unresponsive``, ``vmm_gone``, or ``vmm_refused`` when QEMU says no.
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        with self._translated(command, COMMAND_LIMIT_S):
            async with asyncio.timeout(COMMAND_LIMIT_S), self._turn:
                return await self._client.execute(command, named or None)

    async def add_fd(self, fd: int, fdset: int, label: str) -> int:
        """Hand a copy of ``fd`` over, for QEMU to open as ``/dev/fdset/<fdset>``; the copy's number there.

        Of a set's descriptors QEMU takes the one with the access mode it wants.
        """
        # With SCM_RIGHTS, beside the library's stream: it may sit on a loop whose transports cannot send descriptors.
        with self._translated("add-fd", COMMAND_LIMIT_S):
            async with asyncio.timeout(COMMAND_LIMIT_S), self._turn:
                socket.send_fds(self._connection, [b" "], [fd])
                added = await self._client.execute("add-fd", {"fdset-id": fdset, "opaque": label})
                return cast(dict[str, int], added)["fd"]

    def new_fdset(self) -> int:
        """A number that no fdset has had."""
        self._last_fdset += 1
        return self._last_fdset

    async def fdsets(self) -> Mapping[int, Mapping[str, int]]:
        """Descriptors inside QEMU by their label, by fdset; ``new_fdset`` goes on above them."""
        answer = cast(list[dict[str, Any]], await self.execute("query-fdsets"))
        found = {entry["fdset-id"]: {fd.get("opaque", ""): fd["fd"] for fd in entry["fds"]} for entry in answer}
        self._last_fdset = max(self._last_fdset, *found) if found else self._last_fdset
        return found

    @contextmanager
    def listening_for(self, event: str) -> Iterator[EventListener]:
        """Collect events of one name."""
        with self._client.listener((event,)) as listener:
            yield listener

    @contextmanager
    def _translated(self, command: str, limit_s: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise Unavailable(
                f"The machine of {self._name} did not answer {command!r} within {limit_s:g} s.", slug="vmm_unresponsive"
            ) from error
        except ExecuteError as error:
            raise Unavailable(
                f"The machine of {self._name} refused {command!r}: {error.error.error.desc}", slug="vmm_refused"
            ) from error
        except (QMPError, OSError, EOFError) as error:
            raise Unavailable(f"The machine of {self._name} has ended.", slug="vmm_gone") from error


@asynccontextmanager
async def connected(name: str, directory: Path) -> AsyncIterator[Monitor]:
    """Connect to the QEMU that listens in ``directory``; raises Unavailable as ``Monitor.execute`` does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client = QMPClient(name)
    monitor = Monitor(name, client, connection)
    try:
        with monitor._translated("connect", CONNECT_LIMIT_S):
            connection.setblocking(False)
            with _short_path(directory) as path:
                connection.connect(path)
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await client.connect(connection)
        yield monitor
    finally:
        # Cut hard, so that the library's tasks end even if waiting for them is cancelled.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(_BYE_LIMIT_S):
                await client.disconnect()
        connection.close()
