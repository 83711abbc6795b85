"""Hosts: the machines that run sandboxes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from wrenn_sandbox.core.ids import HostId, UserId
from wrenn_sandbox.db.tables import hosts


class HostStatus(Enum):
    """Whether a host's agent answers."""

    PENDING = "pending"
    ONLINE = "online"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What an agent says of its machine."""

    arch: str
    cpu_cores: int
    memory_mb: int
    disk_gb: int


async def ensure(connection: AsyncConnection, new_id: HostId, address: str, created_by: UserId) -> HostId:
    """The first host's id, made with ``new_id`` when there is none; its address becomes ``address``."""
    row = (await connection.execute(select(hosts.c.id).order_by(hosts.c.created_at, hosts.c.id).limit(1))).one_or_none()
    if row is None:
        await connection.execute(insert(hosts).values(id=new_id.value, address=address, created_by=created_by.value))
        return new_id
    await connection.execute(update(hosts).where(hosts.c.id == row.id).values(address=address))
    return HostId(row.id)


async def heard_from(connection: AsyncConnection, host: HostId, facts: HostFacts, when: datetime) -> None:
    """The agent answered: it is online."""
    values = {
        "arch": facts.arch,
        "cpu_cores": facts.cpu_cores,
        "memory_mb": facts.memory_mb,
        "disk_gb": facts.disk_gb,
        "status": HostStatus.ONLINE.value,
        "last_heartbeat_at": when,
        "updated_at": when,
    }
    await connection.execute(update(hosts).where(hosts.c.id == host.value).values(**values))


async def lost(connection: AsyncConnection, host: HostId, when: datetime) -> None:
    """The agent has not answered for too long."""
    values = {"status": HostStatus.UNREACHABLE.value, "updated_at": when}
    await connection.execute(update(hosts).where(hosts.c.id == host.value).values(**values))


async def status(connection: AsyncConnection, host: HostId) -> HostStatus | None:
    """What is known of the host."""
    row = (await connection.execute(select(hosts.c.status).where(hosts.c.id == host.value))).one_or_none()
    return HostStatus(row.status) if row else None
