"""A real process that has mapped a RAM file privately, as a restored VMM has, and does to it what it is told."""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096


class Guest:
    """The process from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def fill(self, pages: Iterable[int], byte: int) -> None:
        """Fill these pages with one byte."""
        self._ask(f"fill {byte} {' '.join(map(str, pages))}")

    def touch(self, pages: Iterable[int]) -> None:
        """Read these pages."""
        self._ask(f"touch {' '.join(map(str, pages))}")

    def digest(self) -> str:
        """SHA-256 of all of the memory as the process sees it."""
        return self._ask("digest")

    def kill(self) -> None:
        """SIGKILL, and wait until it is nobody's memory any more."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process has ended"
        return answer.strip()


@contextmanager
def mapped(file: Path) -> Iterator[Guest]:
    """Such a process; dead and reaped when this is left."""
    with subprocess.Popen(
        [sys.executable, "-S", __file__, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            guest = Guest(process)
            guest.touch([])
            yield guest
        finally:
            process.kill()


def _serve(file: Path) -> None:
    with file.open("rb") as opened:
        memory = mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    for line in sys.stdin:
        command, *numbers = line.split()
        match command:
            case "fill":
                byte, *pages = map(int, numbers)
                for page in pages:
                    memory[page * PAGE : (page + 1) * PAGE] = bytes([byte]) * PAGE
                print("done", flush=True)
            case "touch":
                print(sum(memory[int(page) * PAGE] for page in numbers), flush=True)
            case "digest":
                print(hashlib.sha256(memory).hexdigest(), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
