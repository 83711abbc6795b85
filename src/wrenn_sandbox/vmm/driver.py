"""What the host agent asks of a VMM, whatever it is.

``boot``, ``restore`` and ``adopt`` are contexts: when one is left, by return, error or cancel, the VMM is dead and
reaped and its jail is gone. Only an ``adopt`` that was never entered ends nothing. A machine may die earlier by itself;
``Machine.wait`` returns then.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wrenn_sandbox.core.artefacts import Platform
from wrenn_sandbox.core.spec import Shape


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do on this host, as data. ``accelerator`` is ``kvm`` or ``tcg``."""

    driver: str
    accelerator: str
    accelerated: bool
    max_vcpus: int
    max_memory_mib: int


@dataclass(frozen=True, slots=True)
class Patch:
    """``length`` bytes of guest memory at ``address``, both in whole pages: from ``source`` at ``offset``, or zeros."""

    address: int
    length: int
    source: Path | None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """Absolute host paths of all that a machine maps or reads."""

    runtime: Path  # directory of one VMM runtime
    kernel: Path
    initramfs: Path
    tools: Path  # squashfs, second disk, read-only
    disk: Path  # qcow2 overlay, first disk, writable
    backing: tuple[Path, ...]  # every file below the overlay, read-only
    memory: Path  # RAM file: created by boot (share=on), mapped privately by restore
    #: What a restore writes over the mapped file before the machine runs, in any order and without overlaps.
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One machine to be. ``tap_fd`` is open with IFF_VNET_HDR and stays owned by the caller."""

    name: str  # the sandbox or build id, for logs and process titles
    shape: Shape
    platform: Platform
    files: MachineFiles
    run_dir: Path  # root-owned directory for the control socket, console log and jail of this machine
    uid: int
    gid: int
    tap_fd: int | None
    host_ip: str  # where the guest's ports answer; the fake VMM binds its envd here


@dataclass(frozen=True, slots=True)
class Exit:
    """How a VMM ended: exit ``code``, negative signal number when killed; ``reason`` is a sentence for the user."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ram:
    """A machine's memory: ``size`` bytes at ``address`` in process ``pid``, mapped privately unless it was booted."""

    pid: int
    address: int
    size: int


class Machine(Protocol):
    """A live VMM. Every call has its own time limit and raises Unavailable (``vmm_unresponsive``) past it."""

    @property
    def pid(self) -> int:
        """Process id of the VMM on the host."""

    async def pause(self) -> None:
        """Stop the vCPUs. No-op when stopped."""

    async def resume(self) -> None:
        """Let the vCPUs run. No-op when running."""

    @property
    def ram(self) -> Ram:
        """Where the guest's memory is mapped, for ``vmm.ram``."""

    @property
    def stalled(self) -> str:
        """What its guest waits for, as a slug: ``host_disk_full``; empty while it goes on."""

    async def snapshot(self, state: Path, overlay: Path | None = None) -> None:
        """Stop the machine and write its device state to the new file ``state``; its disk's caches are written back.

        After ``boot`` the RAM file named in the spec then holds the memory of that moment. ``overlay`` is an empty
        overlay above the present one: the machine writes there from now on, and the present one will not change
        any more and is readable for every VMM. Nothing is synced.

        When this raises, a cancel too, there is no file ``state``, and the machine goes on with ``resume`` and writes
        where it did; after ``vmm_unresponsive`` alone, ask ``writes_to`` before removing ``overlay``.
        """

    async def writes_to(self, overlay: Path) -> bool:
        """Whether the guest's disk writes go to this file: what an agent asks that adopts a half-done snapshot."""

    async def wait(self) -> Exit:
        """Return when the VMM has ended, whoever ended it. Any number of callers may wait."""


class Driver(Protocol):
    """One kind of VMM on this host."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do here."""

    def platform(self, kernel_cmdline: str) -> Platform:
        """The virtual hardware new templates get; recorded in their manifest."""

    def tsc_khz(self) -> int:
        """Rate in kHz of the counter that guests on this host tell the time by, 0 if it does not matter.

        Measured by the first call, which blocks for 50 ms. Two measurements differ by some ppm.
        """

    def boot(self, spec: MachineSpec) -> AbstractAsyncContextManager[Machine]:
        """Cold boot with RAM in the file ``spec.files.memory``; running on entry."""

    def restore(self, spec: MachineSpec, state: Path) -> AbstractAsyncContextManager[Machine]:
        """Restore from ``spec.files.memory`` (copy-on-write), its patches, and ``state``; running on entry."""

    def adopt(self, spec: MachineSpec, pid: int) -> AbstractAsyncContextManager[Machine]:
        """Take over a VMM that another agent process started; raises NotFound (``vmm_gone``) when it is not alive.

        It may be stopped: an agent can die in the middle of a snapshot. Which of its files it writes to is asked of
        the VMM, whatever ``spec.files.disk`` says. When it cannot be taken over, by whatever error or cancel, it is
        left as it is: try again.
        """
