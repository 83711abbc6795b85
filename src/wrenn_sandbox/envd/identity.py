"""What a sandbox knows about itself: ids in files and in every process's environment, machine-id, host name."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path

from wrenn_sandbox.core.errors import Invalid

_MACHINE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", re.ASCII)

#: Each fact is told under both names, so that programs written for either find it.
PREFIXES = ("WRENN", "E2B")


def environment(sandbox_id: str, template_id: str) -> dict[str, str]:
    """The variables every process in the sandbox gets; ids that are not known yet are left out."""
    facts = {"SANDBOX": "true", "SANDBOX_ID": sandbox_id, "TEMPLATE_ID": template_id}
    return {f"{prefix}_{name}": value for prefix in PREFIXES for name, value in facts.items() if value}


def check_machine_id(text: str) -> None:
    """Raise Invalid unless this is what machine-id(5) says: 32 lower-case hexadecimal digits."""
    if not _MACHINE_ID.fullmatch(text):
        raise Invalid("machineId must be 32 lower-case hexadecimal digits.", slug="invalid_machine_id")


def check_hostname(text: str) -> None:
    """Raise Invalid unless this is one host name label of at most 63 characters."""
    if not _HOSTNAME.fullmatch(text):
        raise Invalid("hostname must be one label of letters, digits and inner hyphens.", slug="invalid_hostname")


def write_files(sandbox_id: str, template_id: str, run: Path = Path("/run")) -> None:
    """Write ``<run>/wrenn/.WRENN_SANDBOX_ID`` and the like, and the same under ``<run>/e2b``."""
    for name, value in environment(sandbox_id, template_id).items():
        directory = run / name.partition("_")[0].lower()
        directory.mkdir(mode=0o755, exist_ok=True)
        replace(directory / f".{name}", value, 0o644)


def set_machine_id(machine_id: str, path: Path = Path("/etc/machine-id")) -> bool:
    """Give the guest its own machine-id; False when its file system has no place for one."""
    if not path.exists() and not os.access(path.parent, os.W_OK):
        return False
    try:
        replace(path, machine_id + "\n", 0o444)
    except OSError:  # a read-only root: the image's choice
        return False
    return True


def set_hostname(name: str, etc: Path = Path("/etc")) -> None:
    """Set the kernel's host name and make it resolvable; a read-only /etc keeps its files."""
    socket.sethostname(name)
    hosts = etc / "hosts"
    with contextlib.suppress(OSError):
        replace(etc / "hostname", name + "\n", 0o644)
        before = hosts.read_text() if hosts.exists() else ""
        if (after := hosts_with(before, name)) != before:
            replace(hosts, after, 0o644)


def hosts_with(text: str, name: str) -> str:
    """The text of hosts(5) with ``127.0.1.1 name`` as the one line for 127.0.1.1."""
    lines = [line for line in text.splitlines() if line.split()[:1] != ["127.0.1.1"]]
    return "\n".join([*lines, f"127.0.1.1 {name}"]) + "\n"


def replace(path: Path, text: str, mode: int) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.chmod(mode)
    temporary.replace(path)
