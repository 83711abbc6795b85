"""``python -m wrenn_sandbox.image --images-dir I``: build the guest artefacts, with a line for each step."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from wrenn_sandbox.core.errors import WrennError
from wrenn_sandbox.image.build import STEPS, build_all
from wrenn_sandbox.image.rootfs import DEFAULT_SIZE_MIB

DEFAULT_IMAGES_DIR = "/var/lib/wrenn/images"


def _show(line: str) -> None:
    """Progress goes to standard error: standard output holds only the result."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """Build; 0 when the set is current, 1 with a sentence on standard error otherwise."""
    parser = argparse.ArgumentParser(prog="python -m wrenn_sandbox.image", description="Build the guest artefacts.")
    parser.add_argument("--images-dir", type=Path, default=os.environ.get("WRENN_IMAGES_DIR", DEFAULT_IMAGES_DIR))
    parser.add_argument("--force", action="store_true", help="build although the inputs have not changed")
    parser.add_argument("--refresh", action="store_true", help="look for newer Debian packages")
    parser.add_argument("--only", choices=STEPS, default="", help="one artefact and what it needs")
    parser.add_argument("--rootfs-size-mib", type=int, default=DEFAULT_SIZE_MIB, help="virtual size of the base disk")
    parser.add_argument("--json", action="store_true", help="print the set as JSON")
    given = parser.parse_args(arguments)
    build = build_all(
        Path(given.images_dir),
        _show,
        force=given.force,
        refresh=given.refresh,
        only=given.only,
        rootfs_size_mib=given.rootfs_size_mib,
    )
    try:
        artefacts = asyncio.run(build)
    except WrennError as error:
        sys.stderr.write(f"{error.message} [{error.slug}]\n")
        return 1
    except KeyboardInterrupt:
        return 130
    if given.json:
        sys.stdout.write(json.dumps(asdict(artefacts)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
