"""Which accelerator this host really has.

/dev/kvm may exist, open, answer every ioctl, and still not run a stock kernel (nested virtualisation that is emulated
itself). So only a guest that came up counts: ``Trial`` boots one, a time limit ends the wait, and the verdict is kept
in a file until something that it depends on changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from wrenn_sandbox.core.errors import Unavailable

KVM_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Wanted(Enum):
    """What the operator asks for. AUTO takes KVM where it works."""

    AUTO = "auto"
    TCG = "tcg"
    KVM = "kvm"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One guest that was booted, or was to be; ``reason`` is a sentence."""

    accelerator: str
    cpu_model: str
    booted: bool
    reason: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The accelerator to use, why, and what was tried to find out; ``cached`` when that was at an earlier start."""

    accelerator: str
    cpu_model: str
    reason: str
    tried: tuple[Attempt, ...] = ()
    duration_s: float = 0.0
    cached: bool = False


#: Boots guests under KVM, one attempt after another, until one came up or trying more is pointless.
Trial = Callable[[], AsyncIterator[Attempt]]


@dataclass(frozen=True, slots=True)
class Fallback:
    """What needs no trial."""

    accelerator: str
    cpu_model: str


async def choose(wanted: Wanted, trial: Trial, fallback: Fallback, cache: Path, key: str) -> Verdict:
    """The verdict for this host. Raises Unavailable (``kvm_unusable``) when KVM is insisted on and does not work."""
    if wanted is Wanted.TCG:
        return Verdict(fallback.accelerator, fallback.cpu_model, "It was asked for.")
    verdict = load(cache, key)
    if verdict is None:
        verdict = await _judge(trial, fallback)
        save(cache, key, verdict)
    if wanted is Wanted.KVM and verdict.accelerator != "kvm":
        raise Unavailable(f"KVM does not work on this host: {verdict.reason}", slug="kvm_unusable")
    return verdict


async def _judge(trial: Trial, fallback: Fallback) -> Verdict:
    begin = time.monotonic()
    tried: list[Attempt] = []
    async with aclosing(trial()) as attempts:  # type: ignore[type-var]
        async for attempt in attempts:
            tried.append(attempt)
            if attempt.booted:
                break
    took_s = round(time.monotonic() - begin, 3)
    last = tried[-1] if tried else None
    if last is not None and last.booted:
        return Verdict("kvm", last.cpu_model, "A guest booted under KVM.", tuple(tried), took_s)
    reason = last.reason if last is not None else f"There is no {KVM_DEVICE}."
    return Verdict(fallback.accelerator, fallback.cpu_model, reason, tuple(tried), took_s)


def host_key(artefacts: Sequence[str]) -> str:
    """Changes with a reboot, the kernel, /dev/kvm, or any of ``artefacts`` (digests of runtime, kernel, initramfs)."""
    try:
        info = KVM_DEVICE.stat()
        device = f"{info.st_rdev} {info.st_ino} {info.st_mode} {info.st_ctime_ns}"
    except FileNotFoundError:
        device = "none"
    parts = (_BOOT_ID.read_text().strip(), os.uname().release, os.uname().version, device, *artefacts)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load(cache: Path, key: str) -> Verdict | None:
    """The verdict saved under the same key; None when there is none or it cannot be read."""
    try:
        data = json.loads(cache.read_text())
        if data["key"] != key:
            return None
        fields = data["verdict"]
        tried = tuple(Attempt(**attempt) for attempt in fields.pop("tried"))
        return replace(Verdict(**fields), tried=tried, cached=True)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def save(cache: Path, key: str, verdict: Verdict) -> None:
    """Keep a verdict, atomically."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.new")
    temporary.write_text(json.dumps({"key": key, "verdict": asdict(verdict)}, indent=2) + "\n")
    temporary.replace(cache)
