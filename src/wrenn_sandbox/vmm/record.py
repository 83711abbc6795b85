"""Which process a machine is, written into its directory before the VMM runs: what the next agent adopts it by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from wrenn_sandbox.core.errors import NotFound
from wrenn_sandbox.vmm.process import Identity, identify

RECORD = "vmm.json"


def write(directory: Path, identity: Identity) -> None:
    """Write it down, all or nothing."""
    temporary = directory / f"{RECORD}.new"
    temporary.write_text(json.dumps(asdict(identity)))
    temporary.replace(directory / RECORD)


def confirmed(directory: Path, pid: int) -> Identity:
    """The process written down, if it is ``pid`` and there still; raises NotFound (``vmm_gone``).

    An OSError says nothing about the machine, but that what was written cannot be read now.
    """
    try:
        identity = Identity(**json.loads((directory / RECORD).read_text()))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise NotFound(f"{directory} names no VMM.", slug="vmm_gone") from error
    if identity.pid != pid or identify(pid) != identity:
        raise NotFound(f"{directory} names another process than {pid}.", slug="vmm_gone")
    return identity


@contextmanager
def kept(directory: Path, *others: str) -> Iterator[None]:
    """``directory``, made if missing, loses the record and the files ``others`` when the machine has gone."""
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        yield
    finally:
        for name in (RECORD, *others):
            (directory / name).unlink(missing_ok=True)
