"""What is on disk of a machine that runs, so that the next host agent can take it over, or clear up after this one.

::

    <data dir>/run/<sandbox id>/      one directory a machine, removed with it; <sandbox id>.1 when that name is taken
      sandbox.json                    what the sandbox is: written when its guest has its identity
      disk.qcow2 disk-1.qcow2 ...     its overlays; it writes to the last one
      vmm/                            the driver's: control socket, console log, and the record of its process

The driver's record is written before the VMM runs (``vmm.record``), so there is no VMM that a sweep cannot find. A
directory without ``sandbox.json`` is of a machine that never was a sandbox, or is none any more: rubbish. One whose
record cannot be read (another version wrote it, or the disk fails) is left alone for as long as its VMM lives, since
memory and disk of that are nowhere else; without the VMM it is of no use. Of two directories of one sandbox, which a
roll back has for an instant, the younger record counts.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog

from wrenn_sandbox.core.errors import Invalid, NotFound
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.slots import FIRST_SLOT, FIRST_VMM_UID, LAST_SLOT
from wrenn_sandbox.core.spec import Egress, Lifetime, NetworkPolicy, SandboxSpec, Shape, TimeoutAction
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.threads import in_thread, to_the_end
from wrenn_sandbox.vmm import record
from wrenn_sandbox.vmm.process import Identity, lives, watch

log = structlog.get_logger()

RECORD = "sandbox.json"
_VMM = "vmm"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """A running sandbox. ``parent`` is the build, or base template, that its memory is compared with."""

    request: Request
    slot: int
    parent: UUID
    memory: Path  # the RAM file its VMM has mapped
    created_at_unix_s: float = 0.0
    written_at_unix_s: float = 0.0


class Unreadable(Exception):
    """There is a record, and it cannot be read, or not by this version."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a dead agent left, by directory: the sandboxes, what may be one, and what is none."""

    running: Mapping[Path, Record]
    unreadable: Mapping[Path, SandboxId]  # by the name of the directory; its VMM lives
    rubbish: Sequence[Path]


@contextmanager
def machine_directory(root: Path, name: str) -> Iterator[Path]:
    """A directory of its own for one machine, gone with all its contents when the context is left."""
    path = _made(root, name)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def found_directory(path: Path) -> AsyncIterator[Path]:
    """The directory of a machine that is taken over: afterwards it is gone, and so is its VMM in any case."""
    try:
        yield path
    finally:
        await to_the_end(clear(path))


def _made(root: Path, name: str) -> Path:
    number = 0
    while True:
        path = root / (f"{name}.{number}" if number else name)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
        else:
            return path


def vmm_directory(machine: Path) -> Path:
    """The part that is the driver's; it makes it."""
    return machine / _VMM


def overlay(machine: Path, number: int) -> Path:
    """The name of a machine's overlay, the first one is 0."""
    return machine / (f"disk-{number}.qcow2" if number else "disk.qcow2")


def number(overlay: Path) -> int:
    """Which of a machine's overlays this is, counted from below."""
    return int(overlay.stem.partition("-")[2] or 0)


def overlays(machine: Path) -> list[Path]:
    """The overlays that are there, lowest first."""
    return sorted(machine.glob("disk*.qcow2"), key=number)


def write(machine: Path, content: Record) -> None:
    """Write down what runs in this directory, all or nothing."""
    now_s = time.time()
    try:
        known = read(machine)
    except Unreadable:
        known = None
    created_s = known.created_at_unix_s if known is not None else now_s
    data = asdict(replace(content, created_at_unix_s=created_s, written_at_unix_s=now_s))
    temporary = machine / f"{RECORD}.new"
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps({"version": _VERSION, **data}, default=_plain))
    temporary.replace(machine / RECORD)


def erase(machine: Path) -> None:
    """What is in this directory is no sandbox any more."""
    (machine / RECORD).unlink(missing_ok=True)


def read(machine: Path) -> Record | None:
    """What was written; None when there is nothing. Raises Unreadable."""
    try:
        data: dict[str, Any] = json.loads((machine / RECORD).read_text())
        if data.pop("version") != _VERSION:
            raise ValueError("another version")
        return _record(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{machine / RECORD} cannot be read: {error!r}") from error


def _record(data: dict[str, Any]) -> Record:
    spec = data["request"]["spec"]
    life, net = spec["lifetime"], spec["network"]
    lifetime = {name: TimeoutAction(life[name]) for name in ("idle_action", "deadline_action")}
    network = NetworkPolicy(Egress(net["egress"]), tuple(net["allow_out"]), tuple(net["deny_out"]))
    parts = {"shape": Shape(**spec["shape"]), "lifetime": Lifetime(**{**life, **lifetime}), "network": network}
    request = {
        **data["request"],
        "id": SandboxId(UUID(data["request"]["id"]["value"])),
        "spec": SandboxSpec(**{**spec, **parts}),
        "build_id": UUID(data["request"]["build_id"]) if data["request"]["build_id"] else None,
    }
    return Record(
        **{**data, "request": Request(**request), "parent": UUID(data["parent"]), "memory": Path(data["memory"])}
    )


def _plain(value: object) -> object:
    return value.value if isinstance(value, TimeoutAction | Egress) else str(value)


def survey(root: Path) -> Survey:
    """Look at every directory in ``root``. Of the directories of one sandbox the youngest counts."""
    found: dict[SandboxId, tuple[Path, Record]] = {}
    unreadable: dict[Path, SandboxId] = {}
    directories = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    for path in directories:
        try:
            content = read(path)
        except Unreadable as error:
            if (sandbox_id := _named(path)) is not None and vmm_lives(path):
                unreadable[path] = sandbox_id
            log.error(
                "a sandbox's record cannot be read: its machine is left alone while it runs. Start the version that"
                " wrote it, see to the disk, or destroy the sandbox",
                directory=str(path), runs=path in unreadable, error=str(error),
            )  # fmt: skip
            continue
        if content is None:
            continue
        other = found.get(content.request.id)
        if other is None or other[1].written_at_unix_s < content.written_at_unix_s:
            found[content.request.id] = (path, content)
    running = dict(found.values())
    return Survey(running, unreadable, [path for path in directories if path not in {*running, *unreadable}])


def _named(machine: Path) -> SandboxId | None:
    """The sandbox that a directory is named after."""
    try:
        return SandboxId.parse(machine.name.partition(".")[0])
    except Invalid:
        return None


def slot_number(machine: Path) -> int | None:
    """The network slot of a machine whose record cannot be read: as far as it can, or by the uid of its VMM."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((machine / RECORD).read_text())["slot"])
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{vmm_pid(machine)}/status").read_text()  # proc_pid_status(5)
        number = int(status.partition("Uid:")[2].split()[0]) - FIRST_VMM_UID
        return number if FIRST_SLOT <= number <= LAST_SLOT else None
    return None


def vmm_pid(machine: Path) -> int | None:
    """The process that was written down as this directory's VMM; None when there is none. Raises OSError."""
    identity = _recorded(machine)
    return identity.pid if identity is not None else None


def vmm_lives(machine: Path) -> bool:
    """Whether this directory's VMM runs; when that cannot be found out, it might."""
    try:
        identity = _recorded(machine)
        return identity is not None and lives(identity)
    except OSError:
        return True


async def sweep(root: Path, keep: Collection[Path] = ()) -> int:
    """Kill the VMMs and remove the directories in ``root`` but for ``keep``; returns how many those were."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = [path for path in root.iterdir() if path.is_dir() and path not in keep]
    for path in found:
        await clear(path)
    return len(found)


async def clear(machine: Path) -> None:
    """Kill what runs in a dead agent's directory and remove it. Raises OSError when it is not known what runs there."""
    await end_vmm(machine)
    await in_thread(shutil.rmtree, machine, ignore_errors=True)


async def end_vmm(machine: Path) -> None:
    """Kill what runs in a dead agent's directory. Raises OSError."""
    if (identity := _recorded(machine)) is not None:
        with contextlib.suppress(NotFound):
            async with watch(identity.pid, identity):
                pass  # leaving ends it


def _recorded(machine: Path) -> Identity | None:
    """None when there is none, or none that was written whole: a host that lost power has no VMM either."""
    try:
        data = json.loads((vmm_directory(machine) / record.RECORD).read_text())
        return Identity(int(data["pid"]), int(data["start_ticks"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
