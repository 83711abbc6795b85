"""What every use case works with: the database, the host's agent, begun work, and two short-lived caches."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from wrenn_sandbox.controlplane.agent import HostAgent
from wrenn_sandbox.controlplane.cache import Expiring
from wrenn_sandbox.controlplane.settling import Settling
from wrenn_sandbox.core.ids import ApiKeyId, HostId, SandboxId, TeamId
from wrenn_sandbox.db.api_keys import ApiKey
from wrenn_sandbox.db.engine import Database
from wrenn_sandbox.db.sandboxes import Sandbox

#: A revoked key works this long at most on another control plane.
KEY_CACHE_S = 5.0
#: A row that another control plane changed looks unchanged this long at most; the host agent knows better anyway.
ROW_CACHE_S = 1.0


@dataclass(slots=True)
class Contact:
    """When the host agent last answered, by the monotonic clock, and what it said of itself."""

    last_answer_s: float
    answered: bool = False


@dataclass(slots=True)
class Platform:
    """One running control plane."""

    db: Database
    agent: HostAgent
    host_id: HostId
    settling: Settling
    contact: Contact
    domain: str = "localhost"
    keys: Expiring[str, ApiKey] = field(default_factory=lambda: Expiring(KEY_CACHE_S))
    rows: Expiring[SandboxId, Sandbox] = field(default_factory=lambda: Expiring(ROW_CACHE_S))
    #: What the guests of running sandboxes wait for, as their host said it last: slugs.
    stalled: dict[SandboxId, str] = field(default_factory=dict)
    #: Uses of keys not yet written to the database.
    used_keys: dict[ApiKeyId, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the team that a credential stands for."""

    team: TeamId
    key: ApiKey


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)
