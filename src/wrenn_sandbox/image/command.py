"""Run one host program to its end, inside a time limit, and never leave it behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.vmm.cancels import to_the_end

#: Debian package of each host program a build needs.
PACKAGE_OF: Mapping[str, str] = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "gcc": "gcc and libc6-dev",
    "ldd": "libc-bin",
    "mke2fs": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
}

_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REAP_LIMIT_S = 10.0
_SHOWN_LINES = 12


def missing_tool(program: str) -> Unavailable:
    """The error for a host program that is not installed."""
    package = PACKAGE_OF.get(Path(program).name, Path(program).name)
    return Unavailable(
        f"{program} is not installed: install the Debian package {package}, or run `make setup`.", slug="tool_missing"
    )


def find_tool(program: str) -> Path:
    """Absolute path of a host program; raises Unavailable (``tool_missing``) naming its Debian package."""
    for folder in _SEARCH_PATH.split(":"):
        candidate = Path(folder) / program
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise missing_tool(program)


async def run(
    *argv: str | Path,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> str:
    """Run ``argv`` and return its standard output.

    ``env`` adds to the inherited environment. A bare program name is looked up in the system's folders, so that a
    root shell without /usr/sbin works. Raises Unavailable: ``tool_missing`` when there is no such program,
    ``image_build_failed`` with the end of its output when it fails or takes longer than ``timeout_s``.
    """
    words = [str(word) for word in argv]
    if "/" not in words[0]:
        words[0] = str(find_tool(words[0]))
    environment = {**os.environ, "PATH": _SEARCH_PATH, "LC_ALL": "C.UTF-8", **(env or {})}
    try:
        # asyncio, cancelled while it connects the pipes, kills the program alone and waits for all who have its pipes.
        process = await to_the_end(
            asyncio.create_subprocess_exec(
                *words,
                cwd=cwd,
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        )
    except FileNotFoundError as error:
        raise missing_tool(words[0]) from error
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin)
    except TimeoutError as error:
        raise _failed(words, f"did not end within {timeout_s:g} s", b"") from error
    finally:
        if process.returncode is None:
            await _kill(process)
    if process.returncode != 0:
        raise _failed(words, f"ended with {process.returncode}", err or out)
    return out.decode(errors="replace")


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the process's whole group (it leads its session) and reap it, even while being cancelled."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    # asyncio calls it ended when its pipes are closed, too, and whoever left the group may hold those.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REAP_LIMIT_S):
            await process.wait()


def _failed(words: list[str], how: str, output: bytes) -> Unavailable:
    tail = "\n".join(output.decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:])
    shown = " ".join(words)[:200]
    return Unavailable(
        f"`{shown}` {how}; fix what it says and build again." + (f"\n{tail}" if tail else ""), slug="image_build_failed"
    )
