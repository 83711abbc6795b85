"""Whether a host has room: the capacity rules, decided from figures alone.

A guest uses far less than its size at first and may use all of it later, so a sandbox reserves a part of its memory
(``memory_factor``) and what its VMM costs itself. Reservations not yet used are promises: they are subtracted from
what the kernel calls available, and the rest must leave a reserve for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wrenn_sandbox.core.errors import Exhausted
from wrenn_sandbox.core.spec import Shape

_RETRY_SOON_S = 10
_RETRY_LATER_S = 60


@dataclass(frozen=True, slots=True)
class Rules:
    """The figures of the capacity promise; all configurable by the operator."""

    memory_factor: float = 0.5
    overhead_mib: int = 96
    min_available_fraction: float = 0.10
    min_disk_mib: int = 5 * 1024
    min_disk_fraction: float = 0.10
    max_sandboxes: int = 1000


@dataclass(frozen=True, slots=True)
class Room:
    """What a host has at a moment, MiB. ``promised_mib`` is what was reserved and is not in use yet."""

    memory_total_mib: int
    memory_available_mib: int
    promised_mib: int
    disk_total_mib: int
    disk_free_mib: int
    sandboxes: int


def reservation_mib(shape: Shape, rules: Rules) -> int:
    """Memory to set aside for one sandbox of ``shape``."""
    return round(shape.memory_mib * rules.memory_factor) + rules.overhead_mib


def outstanding_mib(reserved_mib: int, used_mib: int) -> int:
    """The part of a reservation that its VMM has not taken yet."""
    return max(0, reserved_mib - used_mib)


def require_room(room: Room, shapes: Sequence[Shape], rules: Rules) -> int:
    """The MiB to reserve for all of ``shapes`` at once; raises Exhausted (``host_full``, ``host_disk_full``)."""
    require_disk(room, rules)
    if room.sandboxes + len(shapes) > rules.max_sandboxes:
        raise Exhausted(
            f"This host runs {room.sandboxes} sandboxes and takes no more than {rules.max_sandboxes}: "
            "destroy one, or try again later.",
            slug="host_full",
            retry_after_s=_RETRY_SOON_S,
        )
    wanted = sum(reservation_mib(shape, rules) for shape in shapes)
    reserve = round(room.memory_total_mib * rules.min_available_fraction)
    left = room.memory_available_mib - room.promised_mib - reserve
    if wanted > left:
        raise Exhausted(
            f"This host has {max(0, left)} MiB of memory to give and {wanted} MiB are needed: "
            "destroy a sandbox, ask for a smaller one, or try again later.",
            slug="host_full",
            retry_after_s=_RETRY_SOON_S,
        )
    return wanted


def require_disk(room: Room, rules: Rules) -> None:
    """Raise Exhausted (``host_disk_full``) when the host's disk is too full to begin anything new."""
    floor = max(rules.min_disk_mib, round(room.disk_total_mib * rules.min_disk_fraction))
    if room.disk_free_mib < floor:
        raise Exhausted(
            f"The host's disk has {room.disk_free_mib} MiB free and needs {floor} MiB before anything new is made: "
            "free some room on it.",
            slug="host_disk_full",
            retry_after_s=_RETRY_LATER_S,
        )
