"""What is on disk of a machine that runs, so that the next host agent can clear up after this one.

::

    <data dir>/run/<sandbox id>/      one directory a machine, removed with it
      disk.qcow2                      its overlay
      vmm/                            the driver's: control socket, console log, and the record of its process

The record is written before the VMM runs (``vmm.record``), so there is no VMM that a sweep cannot find.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wrenn_sandbox.core.errors import NotFound
from wrenn_sandbox.hostagent.threads import in_thread
from wrenn_sandbox.vmm import record
from wrenn_sandbox.vmm.process import Identity, watch

_VMM = "vmm"


@contextmanager
def machine_directory(root: Path, name: str) -> Iterator[Path]:
    """A directory of its own for one machine, gone with all its contents when the context is left."""
    path = root / name
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def vmm_directory(machine: Path) -> Path:
    """The part that is the driver's; it makes it."""
    return machine / _VMM


async def sweep(root: Path) -> int:
    """Kill the VMMs and remove the directories that a dead agent left in ``root``; returns how many those were."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = [path for path in root.iterdir() if path.is_dir()]
    for path in found:
        if (identity := _recorded(path)) is not None:
            await _end(identity)
        await in_thread(shutil.rmtree, path, ignore_errors=True)
    return len(found)


def _recorded(machine: Path) -> Identity | None:
    try:
        return Identity(**json.loads((vmm_directory(machine) / record.RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


async def _end(identity: Identity) -> None:
    """Kill the process, if it is still the one that was written down."""
    with contextlib.suppress(NotFound):
        async with watch(identity.pid, identity):
            pass  # leaving ends it
