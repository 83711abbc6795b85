"""``wrenn doctor``: what this machine can do, and what stands in the way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrenn_sandbox.cli.image import DEFAULT_IMAGES_DIR
from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.core.slots import DEFAULT_POOLS
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.vmm.probe import Verdict

if TYPE_CHECKING:
    from wrenn_sandbox.net.conflicts import Finding

ACCELERATOR_CACHE = "accelerator.json"
_MIN_DISK_MIB, _MIN_MEMORY_MIB = 5 * 1024, 1024


class Severity(Enum):
    """What a line of the report means. Only ERROR makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at, what was found, and what to do about it."""

    about: str
    severity: Severity
    text: str


def doctor(
    images_dir: Annotated[Path, typer.Option(envvar="WRENN_IMAGES_DIR", help="Guest artefacts.")] = DEFAULT_IMAGES_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    again: Annotated[bool, typer.Option(help="Try KVM again, whatever was found before.")] = False,
) -> None:
    """Say what this machine can do, and what stands in the way."""
    lines, verdict = asyncio.run(_examine(images_dir, again=again))
    if as_json:
        report = [asdict(line) | {"severity": line.severity.value} for line in lines]
        print(json.dumps({"checks": report, "accelerator": asdict(verdict) if verdict else None}, indent=2))
    else:
        for line in lines:
            print(f"{line.severity.value:<8} {line.about:<12} {line.text}")
    if any(line.severity is Severity.ERROR for line in lines):
        raise typer.Exit(1)


async def _examine(images_dir: Path, *, again: bool) -> tuple[list[Line], Verdict | None]:
    from wrenn_sandbox.net import conflicts  # half a second to import, which no other command should wait for
    from wrenn_sandbox.vmm.qemu import trial

    lines = [privileges(os.geteuid()), *_space(images_dir)]
    verdict: Verdict | None = None
    if os.geteuid() == 0:
        found = await asyncio.to_thread(conflicts.find, "wrenn", DEFAULT_POOLS)  # netlink runs a loop of its own
        lines += [network_line(finding) for finding in found]
        if not any(line.about == "network" for line in lines):
            lines.append(Line("network", Severity.OK, "namespaces, taps and nftables work"))
    try:
        artefacts = Catalog(images_dir).current()
        lines.append(Line("artefacts", Severity.OK, f"kernel {artefacts.kernel_release}, in {images_dir}"))
        if os.geteuid() == 0:
            cache = images_dir / ACCELERATOR_CACHE
            if again:
                cache.unlink(missing_ok=True)
            verdict = await trial.choose(Catalog(images_dir), cache)
            lines += accelerator_lines(verdict)
    except WrennError as error:
        lines.append(Line("artefacts", Severity.ERROR, error.message))
    return lines, verdict


def privileges(uid: int) -> Line:
    """Whether this user can run sandboxes."""
    if uid == 0:
        return Line("user", Severity.OK, "root")
    return Line("user", Severity.ERROR, "sandboxes need root for namespaces and jails: use sudo, or --driver fake")


def network_line(finding: Finding) -> Line:
    """A finding of the network as a line."""
    return Line("network", Severity(finding.severity.value), f"{finding.message} [{finding.slug}]")


def accelerator_lines(verdict: Verdict) -> list[Line]:
    """The verdict on KVM, and each attempt behind it."""
    kvm = verdict.accelerator == "kvm"
    when = "found earlier" if verdict.cached else f"took {verdict.duration_s:.1f} s"
    text = f"{verdict.accelerator}, CPU model {verdict.cpu_model}: {verdict.reason} ({when})"
    if not kvm:
        text += " Sandboxes are emulated: real microVMs, several times slower."
    lines = [Line("accelerator", Severity.OK if kvm else Severity.WARNING, text)]
    for attempt in verdict.tried:
        outcome = "booted" if attempt.booted else attempt.reason
        lines.append(
            Line(
                "tried",
                Severity.OK,
                f"{attempt.accelerator}/{attempt.cpu_model}: {outcome} ({attempt.duration_s:.1f} s)",
            )
        )
    return lines


def space(free_mib: int, available_mib: int) -> list[Line]:
    """Whether there is room for sandboxes."""
    disk = Severity.OK if free_mib >= _MIN_DISK_MIB else Severity.ERROR
    memory = Severity.OK if available_mib >= _MIN_MEMORY_MIB else Severity.WARNING
    return [
        Line("disk", disk, f"{free_mib} MiB free; creates stop below {_MIN_DISK_MIB} MiB"),
        Line("memory", memory, f"{available_mib} MiB available"),
    ]


def _space(images_dir: Path) -> list[Line]:
    existing = next(p for p in (images_dir, *images_dir.absolute().parents) if p.exists())
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return space(shutil.disk_usage(existing).free >> 20, int(meminfo["MemAvailable"].split()[0]) >> 10)
