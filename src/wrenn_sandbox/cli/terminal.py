"""The local end of a sandbox terminal: raw mode, window size, and bytes both ways."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp

from wrenn_sandbox.cli.api import Api
from wrenn_sandbox.core.errors import Invalid, Unavailable, first_cause

_INPUT_LIMIT = 64  # pending reads of the keyboard; past it reading waits


async def attach(api: Api, path: str) -> int:
    """Run a login shell on a new terminal of the sandbox until it ends; returns its exit code.

    Raises Invalid (``not_a_terminal``): the end of a pipe cannot be told to a remote terminal reliably.
    """
    if not sys.stdin.isatty():
        raise Invalid("A shell needs a terminal: use `wrenn sandbox exec` in scripts.", slug="not_a_terminal")
    async with api.websocket(path) as socket:
        columns, rows = shutil.get_terminal_size()
        await socket.send_json({"type": "start", "cols": columns, "rows": rows, "envs": {"TERM": _term()}})
        try:
            with _raw_mode():
                return await _pump(socket)
        except BaseExceptionGroup as group:
            raise first_cause(group) from group


async def _pump(socket: aiohttp.ClientWebSocketResponse) -> int:
    outgoing: asyncio.Queue[dict[str, object] | None] = asyncio.Queue(_INPUT_LIMIT)
    async with asyncio.TaskGroup() as tasks:
        with _keyboard(outgoing):
            sender = tasks.create_task(_send(socket, outgoing))
            try:
                return await _receive(socket)
            finally:
                sender.cancel()


async def _send(socket: aiohttp.ClientWebSocketResponse, outgoing: asyncio.Queue[dict[str, object] | None]) -> None:
    while (message := await outgoing.get()) is not None:
        await socket.send_json(message)


async def _receive(socket: aiohttp.ClientWebSocketResponse) -> int:
    async for frame in socket:
        message = json.loads(frame.data)
        match message["type"]:
            case "output":
                sys.stdout.buffer.write(base64.b64decode(message["data"]))
                sys.stdout.buffer.flush()
            case "exit":
                return int(message["exit_code"])
            case "error":
                raise Unavailable(str(message.get("data") or message.get("message")), slug="terminal_lost")
    raise Unavailable("The terminal's connection ended before its shell did.", slug="terminal_lost")


@contextmanager
def _keyboard(outgoing: asyncio.Queue[dict[str, object] | None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()

    def read() -> None:
        if outgoing.full():
            return  # the descriptor stays readable: asked again at the next turn of the loop
        try:
            data = os.read(stdin, 4096)
        except OSError:  # the terminal was closed
            data = b""
        if data:
            outgoing.put_nowait({"type": "input", "data": base64.b64encode(data).decode()})
        else:
            loop.remove_reader(stdin)

    def resize() -> None:
        columns, rows = shutil.get_terminal_size()
        if not outgoing.full():
            outgoing.put_nowait({"type": "resize", "cols": columns, "rows": rows})

    loop.add_reader(stdin, read)
    loop.add_signal_handler(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        loop.remove_signal_handler(signal.SIGWINCH)


@contextmanager
def _raw_mode() -> Iterator[None]:
    stdin = sys.stdin.fileno()
    saved = termios.tcgetattr(stdin)
    tty.setraw(stdin)
    try:
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, saved)


def _term() -> str:
    return os.environ.get("TERM", "xterm-256color")
