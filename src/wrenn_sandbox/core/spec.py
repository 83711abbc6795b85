"""What a sandbox is asked to be: shape, lifetime, network, environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from wrenn_sandbox.core.errors import Invalid

VCPU_CHOICES = (1, 2, 4, 8)
MEMORY_MIB_CHOICES = (256, 512, 1024, 2048, 4096, 8192)
#: Of one fork.
MAX_CHILDREN = 100


class TimeoutAction(Enum):
    """What happens when idle timeout or deadline strikes."""

    KILL = "kill"
    PAUSE = "pause"


class Egress(Enum):
    """What a sandbox may reach beyond our own services. Private ranges are closed in every mode."""

    OPEN = "open"
    CLOSED = "closed"
    ALLOW_LIST = "allow_list"


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a sandbox. Only shapes of the two choice lists exist on a host; requests round up to one."""

    vcpus: int
    memory_mib: int

    def __str__(self) -> str:
        return f"{self.vcpus} vCPU, {self.memory_mib} MiB"

    @property
    def slug(self) -> str:
        """A form for file names, e.g. ``1x512``."""
        return f"{self.vcpus}x{self.memory_mib}"


DEFAULT_SHAPE = Shape(vcpus=1, memory_mib=512)


def round_up(vcpus: int, memory_mib: int, *, max_vcpus: int = 8, max_memory_mib: int = 8192) -> Shape:
    """The smallest offered shape that holds the request; raises Invalid (``invalid_size``)."""
    cpu = next((c for c in VCPU_CHOICES if vcpus <= c <= max_vcpus), None)
    memory = next((m for m in MEMORY_MIB_CHOICES if memory_mib <= m <= max_memory_mib), None)
    if vcpus < 1 or cpu is None:
        raise Invalid(f"vcpus must be from 1 to {max_vcpus}, not {vcpus}.", slug="invalid_size")
    if memory_mib < 1 or memory is None:
        raise Invalid(f"memory_mb must be from 1 to {max_memory_mib}, not {memory_mib}.", slug="invalid_size")
    return Shape(cpu, memory)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a sandbox ends by itself: the earlier of idle timeout and deadline wins.

    ``idle_timeout_s`` 0 means never idle; ``ends_at_unix_s`` 0 means no deadline.
    """

    idle_timeout_s: int = 300
    idle_action: TimeoutAction = TimeoutAction.PAUSE
    ends_at_unix_s: float = 0.0
    deadline_action: TimeoutAction = TimeoutAction.KILL


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What a sandbox may reach. ``allow_out`` counts with ALLOW_LIST, ``deny_out`` with OPEN; both hold IPv4 CIDRs."""

    egress: Egress = Egress.OPEN
    allow_out: tuple[str, ...] = ()
    deny_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Everything a host needs to know to make a sandbox. ``access_token`` guards envd.

    Neither it nor the environment, where people keep their own secrets, appears in a repr.
    """

    template: str
    shape: Shape
    lifetime: Lifetime = Lifetime()
    network: NetworkPolicy = NetworkPolicy()
    envs: dict[str, str] = field(default_factory=dict, repr=False)
    default_user: str = ""
    default_workdir: str = ""
    access_token: str = field(default="", repr=False)
