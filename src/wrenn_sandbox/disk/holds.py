"""Who keeps which build: one small file a holder, written whole or not at all.

::

    <data dir>/holds/
      sb-<uuid>       a paused sandbox: the plain UUID of the build it is in
      tpl-<uuid>      a snapshot template
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import structlog

from wrenn_sandbox.core.errors import Invalid, Unavailable
from wrenn_sandbox.core.ids import SandboxId, TemplateId
from wrenn_sandbox.disk import durability

log = structlog.get_logger()


class Holds:
    """The holds in one folder. The caller keeps others out while it reads and then writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> Mapping[str, UUID]:
        """Every holder with its build; raises Unavailable (``hold_broken``) when one cannot be read."""
        if not self._folder.is_dir():
            return {}
        return {path.name: self._read(path) for path in self._folder.iterdir() if not path.name.startswith(".")}

    def known(self) -> Mapping[str, UUID]:
        """The same without those that cannot be read, which are in the log."""
        found = {}
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            try:
                if not path.name.startswith("."):
                    found[path.name] = self._read(path)
            except (Unavailable, OSError) as error:
                log.error(
                    "a hold cannot be read: while that is so, no build is removed", hold=str(path), error=str(error)
                )
        return found

    def of(self, holder: str) -> UUID | None:
        """The build of one holder; raises Unavailable (``hold_broken``)."""
        path = self._folder / checked_holder(holder)
        return self._read(path) if path.exists() else None

    def put(self, holder: str, build_id: UUID) -> None:
        """Let ``holder`` keep this build and no other; on disk when this returns."""
        path = self._folder / checked_holder(holder)
        if path.exists() and self._read(path) == build_id:
            durability.sync(self._folder)  # whoever wrote it may have been killed before it did
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        durability.write(path, f"{build_id}\n".encode())

    def drop(self, holder: str) -> None:
        """Let ``holder`` keep nothing; on disk when this returns."""
        path = self._folder / checked_holder(holder)
        if path.exists():
            path.unlink()
            durability.sync(self._folder)

    def sweep(self) -> int:
        """Remove what a dead agent left half-written; returns how many files."""
        return durability.remove_asides(self._folder, (durability.NEW,))

    def _read(self, path: Path) -> UUID:
        try:
            return UUID(path.read_text().strip())
        except ValueError as error:
            raise Unavailable(
                f"{path} names no build: write the UUID of the build that {path.name} keeps into it, or remove it.",
                slug="hold_broken",
            ) from error


def checked_holder(holder: str) -> str:
    """``holder`` when it is the id of a sandbox or a template; raises Invalid (``invalid_id``)."""
    for kind in (SandboxId, TemplateId):
        if holder.startswith(f"{kind.prefix}-"):
            return str(kind.parse(holder))
    raise Invalid(f"{holder[:80]!r} is not the id of a sandbox or a template.", slug="invalid_id")
