"""Builds that are about to be: what is written before the host is asked, and what an unanswered question means.

A failure is *certain* when the host itself answered: then it undid what it had begun, and the intent can be forgotten.
When no answer came to what was asked, nobody knows; the intent stays, and the reconciler settles it from what the host
says later.
"""

from __future__ import annotations

from uuid import uuid4

from wrenn_sandbox.controlplane.agent import NotAsked
from wrenn_sandbox.controlplane.platform import now
from wrenn_sandbox.core.errors import Unavailable, WrennError
from wrenn_sandbox.core.ids import BuildId, TemplateId
from wrenn_sandbox.db.builds import Build, Kind
from wrenn_sandbox.db.sandboxes import Sandbox
from wrenn_sandbox.db.templates import Template, Type


def intent(row: Sandbox, kind: Kind, *, name: str = "", template: TemplateId | None = None) -> Build:
    """A new build of a sandbox, not yet asked for; of a snapshot the template ``name`` shall come."""
    return Build(
        id=BuildId(uuid4()),
        team_id=row.team_id,
        host_id=row.host_id,
        sandbox_id=row.id,
        kind=kind,
        created_at=now(),
        shape=row.shape,
        parent_id=row.current_build_id,
        template_id=template,
        name=name,
    )


def template_of(row: Sandbox, intended: Build, made: Build) -> Template:
    """The template that comes of a snapshot of ``row``: it hands on the sandbox's user and environment."""
    return Template(
        id=intended.template_id or TemplateId(uuid4()),
        team_id=intended.team_id,
        name=intended.name,
        created_at=now(),
        type=Type.SNAPSHOT,
        shape=made.shape,
        size_bytes=made.size_bytes,
        disk_size_mb=row.disk_size_mb,
        host_id=intended.host_id,
        build_id=made.id,
        default_user=row.default_user,
        default_env=row.envs,
    )


def is_certain(error: Exception) -> bool:
    """Whether the host answered that it did not do it, or was never asked."""
    return isinstance(error, NotAsked) or (isinstance(error, WrennError) and error.slug != Unavailable.default_slug)
