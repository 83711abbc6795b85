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


def upgrade() -> None:
    """Create everything."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    kind = {
        "uuid": sa.CHAR(36) if sqlite else sa.Uuid(),
        "time": sa.DateTime() if sqlite else sa.DateTime(timezone=True),
        "json": sa.JSON() if sqlite else JSONB(),
    }

    def uuid(name: str, target: str = "", *, null: bool = False) -> sa.Column[Any]:
        return sa.Column(name, kind["uuid"], *([sa.ForeignKey(target)] if target else []), nullable=null)

    def time(name: str, *, null: bool = False) -> sa.Column[Any]:
        return sa.Column(name, kind["time"], nullable=null, server_default=None if null else sa.func.now())

    def string(name: str, default: str | None = None, *, null: bool = False) -> sa.Column[Any]:
        value = None if default is None else sa.text(f"'{default}'")
        return sa.Column(name, sa.Text(), nullable=null, server_default=value)

    def integer(name: str, default: int) -> sa.Column[Any]:
        return sa.Column(name, sa.Integer(), nullable=False, server_default=sa.text(str(default)))

    def flag(name: str) -> sa.Column[Any]:
        return sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.text("false"))

    def json(name: str) -> sa.Column[Any]:
        return sa.Column(name, kind["json"], nullable=False, server_default=sa.text("'{}'"))

    def create(table: str, *items: sa.Column[Any] | sa.Constraint, key: tuple[str, ...] = ("id",)) -> None:
        ids = [i.name for i in items if isinstance(i, sa.Column) and i.type is kind["uuid"]] if sqlite else []
        checks = [sa.CheckConstraint(UUID_CHECK.format(n), name=op.f(f"ck_{table}_{n}_is_uuid")) for n in ids]
        for item in items:
            for foreign in getattr(item, "foreign_keys", ()):
                foreign.name = op.f(f"fk_{table}_{item.name}")
        op.create_table(table, *items, sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{table}")), *checks)

    def unique(table: str, *columns: str) -> sa.UniqueConstraint:
        return sa.UniqueConstraint(*columns, name=op.f(f"uq_{table}_{'_'.join(columns)}"))

    def index(table: str, *columns: str) -> None:
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))

    create(
        "teams",
        *(uuid("id"), string("name"), string("slug"), flag("is_byoc"), time("created_at")),
        time("deleted_at", null=True),
        unique("teams", "slug"),
    )
    create(
        "users",
        *(uuid("id"), string("email"), string("password_hash", null=True), string("name", ""), flag("is_admin")),
        *(time("created_at"), time("updated_at"), unique("users", "email")),
    )
    create(
        "users_teams",
        *(uuid("user_id", "users.id"), uuid("team_id", "teams.id"), flag("is_default"), string("role", "member")),
        time("created_at"),
        key=("team_id", "user_id"),
    )
    index("users_teams", "user_id")
    create(
        "team_api_keys",
        *(uuid("id"), uuid("team_id", "teams.id"), string("name"), string("key_hash"), string("key_prefix")),
        *(uuid("created_by", "users.id"), time("created_at"), time("last_used", null=True)),
        unique("team_api_keys", "key_hash"),
    )
    index("team_api_keys", "team_id")
    create(
        "hosts",
        *(uuid("id"), string("type", "regular"), uuid("team_id", "teams.id", null=True), string("provider", "")),
        *(string("availability_zone", ""), string("arch", ""), integer("cpu_cores", 0), integer("memory_mb", 0)),
        *(integer("disk_gb", 0), string("address", ""), string("status", "pending")),
        *(time("last_heartbeat_at", null=True), json("metadata"), uuid("created_by", "users.id")),
        *(time("created_at"), time("updated_at"), string("cert_fingerprint", ""), flag("mtls_enabled")),
    )
    index("hosts", "type")
    index("hosts", "team_id")
    index("hosts", "status")
    create(
        "templates",
        *(uuid("id"), string("name"), string("type", "base"), integer("vcpus", 1), integer("memory_mb", 512)),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        *(time("created_at"), uuid("team_id"), unique("templates", "team_id", "name")),
    )
    index("templates", "team_id")
    create(
        "sandboxes",
        *(uuid("id"), uuid("team_id", "teams.id"), uuid("host_id"), string("template", "minimal")),
        *(uuid("template_id"), string("status", "pending"), string("status_reason", ""), string("status_slug", "")),
        *(integer("vcpus", 1), integer("memory_mb", 512), integer("disk_size_mb", 0), integer("timeout_sec", 300)),
        *(string("idle_action", "pause"), time("ends_at", null=True), string("deadline_action", "kill")),
        *(string("guest_ip", ""), string("host_ip", ""), string("access_token", "")),
        *(json("metadata"), json("network"), json("envs"), time("created_at"), time("started_at", null=True)),
        *(time("stopped_at", null=True), time("last_active_at", null=True), time("last_updated")),
    )
    index("sandboxes", "status")
    index("sandboxes", "host_id", "status")
    index("sandboxes", "team_id", "created_at", "id")
    zeros = UUID(int=0)
    seeds: dict[str, dict[str, object]] = {
        "teams": {"id": zeros, "name": "Platform", "slug": "platform"},
        "templates": {"id": zeros, "name": "base", "team_id": zeros},
    }
    for table, values in seeds.items():
        columns = [sa.column(c, UuidType() if isinstance(v, UUID) else sa.Text()) for c, v in values.items()]
        op.execute(sa.table(table, *columns).insert().values(**values))
