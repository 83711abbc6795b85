"""``wrenn image``: the guest artefacts of this machine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wrenn_sandbox.image.catalog import Catalog

app = typer.Typer(help="Kernel, initramfs, tools disk, root file system and VMM runtime.", no_args_is_help=True)
DEFAULT_IMAGES_DIR = Path("/var/lib/wrenn/images")
ImagesDir = Annotated[Path, typer.Option(envvar="WRENN_IMAGES_DIR", help="Where the artefacts live.")]


@app.command()
def build(
    images_dir: ImagesDir = DEFAULT_IMAGES_DIR,
    refresh: Annotated[bool, typer.Option(help="Take newer Debian packages where there are any.")] = False,
) -> None:
    """Build what is missing or whose inputs changed."""
    from wrenn_sandbox.image.build import build_all  # what no other command should wait for

    asyncio.run(build_all(images_dir, lambda line: print(line, flush=True), refresh=refresh))


@app.command()
def show(images_dir: ImagesDir = DEFAULT_IMAGES_DIR) -> None:
    """Print the current set of artefacts as JSON."""
    print(json.dumps(asdict(Catalog(images_dir).current()), indent=2))
