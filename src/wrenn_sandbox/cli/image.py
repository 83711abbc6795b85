"""``wrenn image``: the guest artefacts of this machine."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.image.rootfs import DEFAULT_SIZE_MIB as ROOTFS_SIZE_MIB

app = typer.Typer(help="Kernel, initramfs, tools disk, root file system and VMM runtime.", no_args_is_help=True)
DEFAULT_IMAGES_DIR = Path("/var/lib/wrenn/images")
ImagesDir = Annotated[Path, typer.Option(envvar="WRENN_IMAGES_DIR", help="Where the artefacts live.")]


@app.command()
def build(
    images_dir: ImagesDir = DEFAULT_IMAGES_DIR,
    refresh: Annotated[bool, typer.Option("--refresh", help="Take newer Debian packages where there are any.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build although the inputs have not changed.")] = False,
    only: Annotated[str, typer.Option(help="One artefact, and what it needs.")] = "",
    rootfs_size_mib: Annotated[int, typer.Option(min=1, help="Virtual size of the base disk.")] = ROOTFS_SIZE_MIB,
    as_json: Annotated[bool, typer.Option("--json", help="Print the set as JSON.")] = False,
) -> None:
    """Build what is missing or whose inputs changed; progress goes to standard error."""
    from wrenn_sandbox.image.build import build_all  # what no other command should wait for

    artefacts = asyncio.run(
        build_all(images_dir, _show_progress, force=force, refresh=refresh, only=only, rootfs_size_mib=rootfs_size_mib)
    )
    if as_json:
        print(json.dumps(asdict(artefacts)))


@app.command()
def show(images_dir: ImagesDir = DEFAULT_IMAGES_DIR) -> None:
    """Print the current set of artefacts as JSON."""
    print(json.dumps(asdict(Catalog(images_dir).current()), indent=2))


def _show_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
