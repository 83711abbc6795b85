"""What this host has to give, read from the kernel, and what of it is promised."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from wrenn_sandbox.core import placement
from wrenn_sandbox.core.placement import Room, Rules
from wrenn_sandbox.core.spec import Shape

_MIB = 1024 * 1024
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True, slots=True)
class HostFigures:
    """Memory and disk of the host at a moment, MiB."""

    memory_total_mib: int
    memory_available_mib: int
    disk_total_mib: int
    disk_free_mib: int


def read_figures(data_dir: Path) -> HostFigures:
    """Ask the kernel: /proc/meminfo (proc_meminfo(5)) and statvfs(3) of ``data_dir``."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    disk = os.statvfs(data_dir)
    return HostFigures(
        memory_total_mib=int(fields["MemTotal"].split()[0]) // 1024,
        memory_available_mib=int(fields["MemAvailable"].split()[0]) // 1024,
        disk_total_mib=disk.f_blocks * disk.f_frsize // _MIB,
        disk_free_mib=disk.f_bavail * disk.f_frsize // _MIB,
    )


def private_mib(pid: int) -> int:
    """Memory of a process that is its own: resident minus shared pages of /proc/PID/statm (proc_pid_statm(5))."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES // _MIB


@dataclass(slots=True, eq=False)
class Reservation:
    """Memory set aside for one machine; ``pid`` is its VMM once there is one. A bake's machine is no sandbox."""

    mib: int
    pid: int | None = None
    is_sandbox: bool = True

    def outstanding_mib(self) -> int:
        """What of it is still a promise."""
        return placement.outstanding_mib(self.mib, private_mib(self.pid) if self.pid is not None else 0)


class Capacity:
    """All reservations of this host. Nothing awaits between looking and reserving, so two cannot take the last room."""

    def __init__(self, rules: Rules, figures: Callable[[], HostFigures]) -> None:
        self.rules = rules
        self._figures = figures
        self._held: set[Reservation] = set()

    def room(self) -> Room:
        """What there is and what is promised, now."""
        figures = self._figures()
        return Room(
            memory_total_mib=figures.memory_total_mib,
            memory_available_mib=figures.memory_available_mib,
            promised_mib=sum(held.outstanding_mib() for held in self._held),
            disk_total_mib=figures.disk_total_mib,
            disk_free_mib=figures.disk_free_mib,
            sandboxes=sum(1 for held in self._held if held.is_sandbox),
        )

    @contextmanager
    def reserved(self, shape: Shape) -> Iterator[Reservation]:
        """Set memory aside for one sandbox while the context lasts; raises Exhausted when there is no room."""
        with self.reserved_together([shape]) as (reservation,):
            yield reservation

    @contextmanager
    def handed_over(self, reservation: Reservation) -> Iterator[Reservation]:
        """One of ``reserved_together`` as a reservation of its own, which lasts as long as this context."""
        own = Reservation(reservation.mib)
        self._held.discard(reservation)
        self._held.add(own)
        try:
            yield own
        finally:
            self._held.discard(own)

    @contextmanager
    def taken(self, shape: Shape, pid: int) -> Iterator[Reservation]:
        """Count a machine that runs already, whether or not there would be room for it now."""
        reservation = Reservation(placement.reservation_mib(shape, self.rules), pid)
        self._held.add(reservation)
        try:
            yield reservation
        finally:
            self._held.discard(reservation)

    def require_disk(self) -> None:
        """Raise Exhausted (``host_disk_full``) when nothing new may be put on the disk."""
        placement.require_disk(self.room(), self.rules)

    @contextmanager
    def reserved_for_bake(self, shape: Shape) -> Iterator[Reservation]:
        """The same for the machine of a bake, which the number of sandboxes does not bound."""
        mib = placement.require_room(replace(self.room(), sandboxes=0), [shape], self.rules)
        reservation = Reservation(mib, is_sandbox=False)
        self._held.add(reservation)
        try:
            yield reservation
        finally:
            self._held.discard(reservation)

    @contextmanager
    def reserved_together(self, shapes: Sequence[Shape]) -> Iterator[Sequence[Reservation]]:
        """Reserve for all of ``shapes`` or for none."""
        placement.require_room(self.room(), shapes, self.rules)
        reservations = [Reservation(placement.reservation_mib(shape, self.rules)) for shape in shapes]
        self._held.update(reservations)
        try:
            yield reservations
        finally:
            self._held.difference_update(reservations)
