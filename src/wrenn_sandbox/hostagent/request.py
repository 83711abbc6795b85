"""A sandbox to be, as the agent is asked for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from wrenn_sandbox.core.artefacts import Manifest
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.spec import SandboxSpec


@dataclass(frozen=True, slots=True)
class Request:
    """``template_id`` is what the guest is told; without ``build_id`` it is made from the base template."""

    id: SandboxId
    spec: SandboxSpec
    template_id: str
    build_id: UUID | None = None

    def fitted(self, manifest: Manifest) -> Request:
        """The same made from a build: that fixes the shape, and gives defaults for what was not asked for."""
        spec = replace(
            self.spec,
            shape=manifest.shape,
            template=self.spec.template or manifest.template,
            default_user=self.spec.default_user or manifest.default_user,
            default_workdir=self.spec.default_workdir or manifest.default_workdir,
            envs=self.spec.envs or dict(manifest.envs),
        )
        return replace(self, spec=spec)
