"""What the host agent asks of a VMM, whatever it is.

``boot``, ``restore`` and ``adopt`` are contexts: when one is left, by return, error or cancel, the VMM is dead and
reaped and its jail is gone. A machine may die earlier by itself; ``Machine.wait`` returns then.
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
class MachineFiles:
    """Absolute host paths of all that a machine maps or reads."""

    runtime: Path  # directory of one VMM runtime
    kernel: Path
    initramfs: Path
    tools: Path  # squashfs, second disk, read-only
    disk: Path  # qcow2 overlay, first disk, writable
    backing: tuple[Path, ...]  # every file below the overlay, read-only
    memory: Path  # RAM file: created by boot (share=on), mapped privately by restore


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


class Machine(Protocol):
    """A live VMM. Every call has its own time limit and raises Unavailable (``vmm_unresponsive``) past it."""

    @property
    def pid(self) -> int:
        """Process id of the VMM on the host."""

    async def pause(self) -> None:
        """Stop the vCPUs. No-op when stopped."""

    async def resume(self) -> None:
        """Let the vCPUs run. No-op when running."""

    async def snapshot(self, state: Path) -> None:
        """Write the device state of a paused machine to the new file ``state``; disks are flushed before it returns.

        After ``boot`` the RAM file named in the spec then holds the memory of that moment.
        """

    async def wait(self) -> Exit:
        """Return when the VMM has ended, whoever ended it. Any number of callers may wait."""


class Driver(Protocol):
    """One kind of VMM on this host."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do here."""

    def platform(self, kernel_cmdline: str) -> Platform:
        """The virtual hardware new templates get; recorded in their manifest."""

    def boot(self, spec: MachineSpec) -> AbstractAsyncContextManager[Machine]:
        """Cold boot with RAM in the file ``spec.files.memory``; running on entry."""

    def restore(self, spec: MachineSpec, state: Path) -> AbstractAsyncContextManager[Machine]:
        """Restore from ``spec.files.memory`` (copy-on-write) and ``state``; running on entry."""

    def adopt(self, spec: MachineSpec, pid: int) -> AbstractAsyncContextManager[Machine]:
        """Take over a VMM that another agent process started; raises NotFound (``vmm_gone``) when it is not alive."""
