"""The first schema, with the platform team and the built-in template it owns.

Edited in place until v0.1.0; after that, every change is a revision of its own.
"""

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from wrenn_sandbox.db.tables import UuidType

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UUID_CHECK = "length({0}) = 36 AND length(replace({0}, '-', '')) = 32 AND replace({0}, '-', '') NOT GLOB '*[^0-9a-f]*'"


class Schema:
    """Columns and constraints as this revision names and types them, on either database."""

    def __init__(self) -> None:
        self.sqlite = op.get_bind().dialect.name == "sqlite"

    def uuid(self, name: str, target: str = "", *, null: bool = False) -> sa.Column[Any]:
        kind = sa.CHAR(36) if self.sqlite else sa.Uuid()
        return sa.Column(name, kind, *([sa.ForeignKey(target)] if target else []), nullable=null)

    def time(self, name: str, *, null: bool = False) -> sa.Column[Any]:
        kind = sa.DateTime(timezone=not self.sqlite)
        return sa.Column(name, kind, nullable=null, server_default=None if null else sa.func.now())

    def string(self, name: str, default: str | None = None, *, null: bool = False) -> sa.Column[Any]:
        value = None if default is None else sa.text(f"'{default}'")
        return sa.Column(name, sa.Text(), nullable=null, server_default=value)

    def integer(self, name: str, default: int) -> sa.Column[Any]:
        return sa.Column(name, sa.Integer(), nullable=False, server_default=sa.text(str(default)))

    def flag(self, name: str) -> sa.Column[Any]:
        return sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.text("false"))

    def json(self, name: str) -> sa.Column[Any]:
        kind = sa.JSON() if self.sqlite else JSONB()
        return sa.Column(name, kind, nullable=False, server_default=sa.text("'{}'"))

    def unique(self, table: str, *columns: str) -> sa.UniqueConstraint:
        return sa.UniqueConstraint(*columns, name=op.f(f"uq_{table}_{'_'.join(columns)}"))

    def size(self, name: str) -> sa.Column[Any]:
        return sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))

    def index(self, table: str, *columns: str) -> None:
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))

    def create(self, table: str, *items: sa.Column[Any] | sa.Constraint, key: tuple[str, ...] = ("id",)) -> None:
        ids = [i.name for i in items if isinstance(i, sa.Column) and isinstance(i.type, sa.CHAR)]
        checks = [sa.CheckConstraint(UUID_CHECK.format(n), name=op.f(f"ck_{table}_{n}_is_uuid")) for n in ids]
        for item in items:
            for foreign in getattr(item, "foreign_keys", ()):
                foreign.name = op.f(f"fk_{table}_{item.name}")
        op.create_table(table, *items, sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{table}")), *checks)


def upgrade() -> None:
    """Create everything."""
    schema = Schema()
    accounts(schema)
    hosts_and_templates(schema)
    sandboxes(schema)
    builds(schema)
    seed()


def accounts(s: Schema) -> None:
    """Teams, users, who belongs to which, and keys."""
    s.create(
        "teams",
        *(s.uuid("id"), s.string("name"), s.string("slug"), s.flag("is_byoc"), s.time("created_at")),
        *(s.time("deleted_at", null=True), s.unique("teams", "slug")),
    )
    s.create(
        "users",
        *(s.uuid("id"), s.string("email"), s.string("password_hash", null=True), s.string("name", "")),
        *(s.flag("is_admin"), s.time("created_at"), s.time("updated_at"), s.unique("users", "email")),
    )
    s.create(
        "users_teams",
        *(s.uuid("user_id", "users.id"), s.uuid("team_id", "teams.id"), s.flag("is_default")),
        *(s.string("role", "member"), s.time("created_at")),
        key=("team_id", "user_id"),
    )
    s.index("users_teams", "user_id")
    s.create(
        "team_api_keys",
        *(s.uuid("id"), s.uuid("team_id", "teams.id"), s.string("name"), s.string("key_hash")),
        *(s.string("key_prefix"), s.uuid("created_by", "users.id"), s.time("created_at")),
        *(s.time("last_used", null=True), s.unique("team_api_keys", "key_hash")),
    )
    s.index("team_api_keys", "team_id")


def hosts_and_templates(s: Schema) -> None:
    """Where sandboxes run and what they are made from."""
    s.create(
        "hosts",
        *(s.uuid("id"), s.string("type", "regular"), s.uuid("team_id", "teams.id", null=True)),
        *(s.string("provider", ""), s.string("availability_zone", ""), s.string("arch", "")),
        *(s.integer("cpu_cores", 0), s.integer("memory_mb", 0), s.integer("disk_gb", 0), s.string("address", "")),
        *(s.string("status", "pending"), s.time("last_heartbeat_at", null=True), s.json("metadata")),
        *(s.uuid("created_by", "users.id"), s.time("created_at"), s.time("updated_at")),
        *(s.string("cert_fingerprint", ""), s.flag("mtls_enabled")),
    )
    for column in ("type", "team_id", "status"):
        s.index("hosts", column)
    s.create(
        "templates",
        *(s.uuid("id"), s.string("name"), s.string("type", "base"), s.integer("vcpus", 1)),
        *(s.integer("memory_mb", 512), s.size("size_bytes"), s.time("created_at"), s.uuid("team_id")),
        *(s.uuid("host_id", null=True), s.uuid("build_id", null=True), s.integer("disk_size_mb", 0)),
        *(s.string("default_user", "root"), s.json("default_env"), s.unique("templates", "team_id", "name")),
    )
    s.index("templates", "team_id")
    s.index("templates", "build_id")


def sandboxes(s: Schema) -> None:
    """What is wanted, and what came of it."""
    s.create(
        "sandboxes",
        *(s.uuid("id"), s.uuid("team_id", "teams.id"), s.uuid("host_id"), s.string("template", "minimal")),
        *(s.uuid("template_id"), s.string("status", "pending"), s.string("status_reason", "")),
        *(s.string("status_slug", ""), s.integer("vcpus", 1), s.integer("memory_mb", 512)),
        *(s.integer("disk_size_mb", 0), s.integer("timeout_sec", 300), s.string("idle_action", "pause")),
        *(s.time("ends_at", null=True), s.string("deadline_action", "kill"), s.string("guest_ip", "")),
        *(s.string("host_ip", ""), s.string("access_token", ""), s.json("metadata"), s.json("network")),
        *(s.json("envs"), s.string("default_user", "")),
        *(s.uuid("build_id", null=True), s.uuid("current_build_id", null=True)),
        s.uuid("intended_build_id", null=True),
        *(s.time("created_at"), s.time("started_at", null=True), s.time("stopped_at", null=True)),
        *(s.time("last_active_at", null=True), s.time("last_updated")),
    )
    s.index("sandboxes", "status")
    s.index("sandboxes", "host_id", "status")
    s.index("sandboxes", "team_id", "created_at", "id")


def builds(s: Schema) -> None:
    """Moments of sandboxes that are kept, or about to be."""
    s.create(
        "builds",
        *(s.uuid("id"), s.uuid("team_id", "teams.id"), s.uuid("host_id"), s.uuid("sandbox_id")),
        *(s.uuid("parent_id", null=True), s.uuid("template_id", null=True), s.string("kind")),
        *(s.string("status", "creating"), s.string("name", ""), s.integer("vcpus", 1)),
        *(s.integer("memory_mb", 512), s.size("size_bytes"), s.time("created_at")),
    )
    s.index("builds", "team_id", "sandbox_id")
    s.index("builds", "host_id", "status")
    named = sa.text("status = 'creating' AND name <> ''")
    op.create_index(
        op.f("uq_builds_name_in_the_making"),
        "builds",
        ["team_id", "name"],
        unique=True,
        sqlite_where=named,
        postgresql_where=named,
    )


def seed() -> None:
    """The platform team and its template."""
    zeros = UUID(int=0)
    seeds: dict[str, dict[str, object]] = {
        "teams": {"id": zeros, "name": "Platform", "slug": "platform"},
        "templates": {"id": zeros, "name": "base", "team_id": zeros, "default_user": ""},
    }
    for table, values in seeds.items():
        columns = [sa.column(c, UuidType() if isinstance(v, UUID) else sa.Text()) for c, v in values.items()]
        op.execute(sa.table(table, *columns).insert().values(**values))
