"""Why a QEMU ended, as a sentence for the sandbox's owner."""

from __future__ import annotations

import signal

from wrenn_sandbox.vmm.process import UNKNOWN_CODE

_QUOTE_LENGTH = 400
_QUOTE_LINES = 3
_PANIC = "Kernel panic - not syncing:"


def describe(code: int, console: str, stderr: str) -> str:
    """The sentence. ``code`` as ``Process.code``, ``console`` and ``stderr`` as far as they were kept."""
    panic = next((line for line in console.splitlines() if _PANIC in line), "")
    if panic:
        return f"The guest's kernel panicked: {_tail(panic.partition(_PANIC)[2])}."
    said = _tail(stderr)
    if code == 0:
        return "The guest shut down or rebooted."
    if code == UNKNOWN_CODE:
        return f"The machine ended while no agent was its parent{_quoted(said)}."
    if code == -signal.SIGKILL:
        return "The machine was killed (signal 9): by an operator, or by the kernel because the host ran out of memory."
    if code == -signal.SIGSYS:
        return "The machine was killed because it made a forbidden system call (signal 31)."
    if code < 0:
        return f"The machine crashed (signal {-code}){_quoted(said)}."
    return f"QEMU failed with exit code {code}{_quoted(said)}."


def _tail(text: str) -> str:
    """The last lines, whole ones as far as possible."""
    lines = [line.strip()[:_QUOTE_LENGTH] for line in text.splitlines() if line.strip()][-_QUOTE_LINES:]
    while len(lines) > 1 and len(" / ".join(lines)) > _QUOTE_LENGTH:
        lines.pop(0)
    return " / ".join(lines).rstrip(".")


def _quoted(said: str) -> str:
    return f": {said}" if said else ""
