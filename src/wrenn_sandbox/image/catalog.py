"""Where artefacts live, and which set is current.

::

    images/
      current.json                    the newest ArtefactSet
      runtimes/<hash>/                bin/ lib/ share/ of one VMM
      kernels/<hash>/vmlinuz
      initramfs/<hash>/initramfs
      tools/<hash>/tools.squashfs
      rootfs/<hash>/rootfs.ext4
      bases/<key>/                    base templates, booted once for each shape: manifest.json disk.qcow2 memory state
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.core.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Catalog:
    """Paths of artefacts below ``root``."""

    root: Path

    def runtime(self, digest: str) -> Path:
        """Directory of a VMM runtime."""
        return self.root / "runtimes" / digest

    def kernel(self, digest: str) -> Path:
        """The kernel image."""
        return self.root / "kernels" / digest / "vmlinuz"

    def initramfs(self, digest: str) -> Path:
        """The initramfs, gzip or zstd as the kernel takes it."""
        return self.root / "initramfs" / digest / "initramfs"

    def tools(self, digest: str) -> Path:
        """The tools disk."""
        return self.root / "tools" / digest / "tools.squashfs"

    def rootfs(self, digest: str) -> Path:
        """A root file system image, raw ext4."""
        return self.root / "rootfs" / digest / "rootfs.ext4"

    @property
    def bases(self) -> Path:
        """Directory of the baked base templates."""
        return self.root / "bases"

    def current(self) -> ArtefactSet:
        """The newest set; raises Unavailable (``artefacts_missing``) before the first ``wrenn image build``."""
        try:
            return ArtefactSet(**json.loads((self.root / "current.json").read_text()))
        except (FileNotFoundError, TypeError, ValueError) as error:
            raise Unavailable(
                f"There are no guest artefacts in {self.root}: run `make image` or `wrenn image build`.",
                slug="artefacts_missing",
            ) from error

    def set_current(self, artefacts: ArtefactSet) -> None:
        """Make ``artefacts`` the newest set, atomically."""
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / "current.json.new"
        temporary.write_text(json.dumps(asdict(artefacts), indent=2) + "\n")
        temporary.replace(self.root / "current.json")
