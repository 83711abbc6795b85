"""The schema: every table, and the three column types that must behave alike on SQLite and PostgreSQL.

Ids and foreign keys are UUID columns everywhere; SQLite, which has no such type, gets a CHECK that refuses anything
else. Text that names nothing of ours (a template's name as the user wrote it) stays text.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import CHAR, TypeDecorator, TypeEngine

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UuidType(TypeDecorator[UUID]):
    """A UUID: native on PostgreSQL, 36 characters on SQLite. Takes nothing but ``uuid.UUID``."""

    impl = Uuid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """CHAR where there is no native type."""
        return dialect.type_descriptor(Uuid() if dialect.name == "postgresql" else CHAR(36))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        """Refuse strings, so that a wire id cannot slip in unconverted."""
        if value is None:
            return None
        if not isinstance(value, UUID):
            raise TypeError(f"{value!r} is not a UUID")
        return value if dialect.name == "postgresql" else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        """Always ``uuid.UUID``."""
        return value if value is None or isinstance(value, UUID) else UUID(value)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment. Aware datetimes go in, UTC comes out, on both databases."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """SQLite keeps no zone: everything is written as UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError("a datetime without a time zone names no moment")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Json = JSON().with_variant(JSONB(), "postgresql")

#: A build that will get a name.
NAMED_INTENT = "status = 'creating' AND name <> ''"
#: What a text must be to pass as a UUID in SQLite.
UUID_CHECK = "length({0}) = 36 AND length(replace({0}, '-', '')) = 32 AND replace({0}, '-', '') NOT GLOB '*[^0-9a-f]*'"


def _uuid_checks(*names: str) -> list[CheckConstraint]:
    return [CheckConstraint(UUID_CHECK.format(n), name=f"{n}_is_uuid").ddl_if(dialect="sqlite") for n in names]


def _now(name: str) -> Column[datetime]:
    return Column(name, UtcDateTime, nullable=False, server_default=func.now())


def _int(name: str, default: int) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text(str(default)))


def _text(name: str, default: str | None = None) -> Column[str]:
    return Column(name, Text, nullable=False, server_default=None if default is None else text(f"'{default}'"))


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text("false"))


def _json(name: str) -> Column[Any]:
    return Column(name, Json, nullable=False, server_default=text("'{}'"))


def _only_where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


teams = Table(
    "teams",
    metadata,
    Column("id", UuidType, primary_key=True),
    _text("name"),
    Column("slug", Text, nullable=False, unique=True),
    _flag("is_byoc"),
    _now("created_at"),
    Column("deleted_at", UtcDateTime),
    *_uuid_checks("id"),
)

users = Table(
    "users",
    metadata,
    Column("id", UuidType, primary_key=True),
    Column("email", Text, nullable=False, unique=True),
    Column("password_hash", Text),
    _text("name", ""),
    _flag("is_admin"),
    _now("created_at"),
    _now("updated_at"),
    *_uuid_checks("id"),
)

users_teams = Table(
    "users_teams",
    metadata,
    Column("user_id", UuidType, ForeignKey("users.id"), nullable=False),
    Column("team_id", UuidType, ForeignKey("teams.id"), nullable=False),
    _flag("is_default"),
    _text("role", "member"),
    _now("created_at"),
    PrimaryKeyConstraint("team_id", "user_id"),
    Index(None, "user_id"),
    *_uuid_checks("user_id", "team_id"),
)

team_api_keys = Table(
    "team_api_keys",
    metadata,
    Column("id", UuidType, primary_key=True),
    Column("team_id", UuidType, ForeignKey("teams.id"), nullable=False),
    _text("name"),
    Column("key_hash", Text, nullable=False, unique=True),
    _text("key_prefix"),
    Column("created_by", UuidType, ForeignKey("users.id"), nullable=False),
    _now("created_at"),
    Column("last_used", UtcDateTime),
    Index(None, "team_id"),
    *_uuid_checks("id", "team_id", "created_by"),
)

hosts = Table(
    "hosts",
    metadata,
    Column("id", UuidType, primary_key=True),
    _text("type", "regular"),
    Column("team_id", UuidType, ForeignKey("teams.id")),
    _text("provider", ""),
    _text("availability_zone", ""),
    _text("arch", ""),
    _int("cpu_cores", 0),
    _int("memory_mb", 0),
    _int("disk_gb", 0),
    _text("address", ""),
    _text("status", "pending"),
    Column("last_heartbeat_at", UtcDateTime),
    _json("metadata"),
    Column("created_by", UuidType, ForeignKey("users.id"), nullable=False),
    _now("created_at"),
    _now("updated_at"),
    _text("cert_fingerprint", ""),
    _flag("mtls_enabled"),
    Index(None, "type"),
    Index(None, "team_id"),
    Index(None, "status"),
    *_uuid_checks("id", "team_id", "created_by"),
)

templates = Table(
    "templates",
    metadata,
    Column("id", UuidType, primary_key=True),
    _text("name"),
    _text("type", "base"),
    _int("vcpus", 1),
    _int("memory_mb", 512),
    Column("size_bytes", BigInteger, nullable=False, server_default=text("0")),
    _now("created_at"),
    Column("team_id", UuidType, nullable=False),
    Column("host_id", UuidType),
    Column("build_id", UuidType),
    _int("disk_size_mb", 0),
    _text("default_user", "root"),
    _json("default_env"),
    UniqueConstraint("team_id", "name"),
    Index(None, "team_id"),
    Index(None, "build_id"),
    *_uuid_checks("id", "team_id", "host_id", "build_id"),
)

builds = Table(
    "builds",
    metadata,
    Column("id", UuidType, primary_key=True),
    Column("team_id", UuidType, ForeignKey("teams.id"), nullable=False),
    Column("host_id", UuidType, nullable=False),
    Column("sandbox_id", UuidType, nullable=False),
    Column("parent_id", UuidType),
    Column("template_id", UuidType),
    _text("kind"),
    _text("status", "creating"),
    _text("name", ""),
    _int("vcpus", 1),
    _int("memory_mb", 512),
    Column("size_bytes", BigInteger, nullable=False, server_default=text("0")),
    _now("created_at"),
    Index(None, "team_id", "sandbox_id"),
    Index(None, "host_id", "status"),
    # Two snapshots of one name cannot be in the making at once: of two who ask, one is told.
    Index("uq_builds_name_in_the_making", "team_id", "name", unique=True, **_only_where(NAMED_INTENT)),
    *_uuid_checks("id", "team_id", "host_id", "sandbox_id", "parent_id", "template_id"),
)

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", UuidType, primary_key=True),
    Column("team_id", UuidType, ForeignKey("teams.id"), nullable=False),
    Column("host_id", UuidType, nullable=False),
    _text("template", "minimal"),
    Column("template_id", UuidType, nullable=False),
    _text("status", "pending"),
    _text("status_reason", ""),
    _text("status_slug", ""),
    _int("vcpus", 1),
    _int("memory_mb", 512),
    _int("disk_size_mb", 0),
    _int("timeout_sec", 300),
    _text("idle_action", "pause"),
    Column("ends_at", UtcDateTime),
    _text("deadline_action", "kill"),
    _text("guest_ip", ""),
    _text("host_ip", ""),
    _text("access_token", ""),
    _json("metadata"),
    _json("network"),
    _json("envs"),
    _text("default_user", ""),
    Column("build_id", UuidType),
    Column("current_build_id", UuidType),
    Column("intended_build_id", UuidType),
    _now("created_at"),
    Column("started_at", UtcDateTime),
    Column("stopped_at", UtcDateTime),
    Column("last_active_at", UtcDateTime),
    _now("last_updated"),
    Index(None, "status"),
    Index(None, "host_id", "status"),
    Index(None, "team_id", "created_at", "id"),
    *_uuid_checks("id", "team_id", "host_id", "template_id", "build_id", "current_build_id", "intended_build_id"),
)
