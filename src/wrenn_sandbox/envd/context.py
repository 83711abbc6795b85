"""What is true for the whole guest and changes while envd runs.

``/init`` writes it after every restore; every request reads it. There is one event loop and no thread touches it, so
it needs no lock.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wrenn_sandbox.envd.activity import Activity

if TYPE_CHECKING:
    from wrenn_sandbox.envd.cgroups import Cgroups


@dataclass(slots=True)
class GuestContext:
    """The mutable state of one guest.

    ``default_user`` is who runs a process when the request names nobody; ``default_workdir`` is where, "" for the
    user's home. ``envs`` are the variables of ``/init``. ``tools_dir`` is where the tools disk is mounted, None when
    envd runs outside a guest without one. ``cgroups`` stays None until the guest's groups are made.
    """

    default_user: str = "root"
    default_workdir: str = ""
    envs: dict[str, str] = field(default_factory=dict)
    sandbox_id: str = ""
    template_id: str = ""
    access_token: str | None = None
    is_guest: bool = True
    tools_dir: Path | None = None
    cgroups: Cgroups | None = None
    activity: Activity = field(default_factory=Activity)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("envd"))

    def all_envs(self) -> dict[str, str]:
        """The variables every process of this guest gets: who the sandbox is, then those of ``/init``."""
        identity = {"WRENN_SANDBOX": "true" if self.is_guest else "false"}
        if self.sandbox_id:
            identity["WRENN_SANDBOX_ID"] = self.sandbox_id
        if self.template_id:
            identity["WRENN_TEMPLATE_ID"] = self.template_id
        return identity | self.envs
