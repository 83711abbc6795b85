"""The exec shim, compiled for a test where users other than the test's own can run it."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.running import ROOT


def compile_shim(folder: Path) -> Path:
    """guest/exec-shim.c as ``folder``/exec-shim; pytest makes its directories for their owner alone."""
    target = folder / "exec-shim"
    source = ROOT / "guest" / "exec-shim.c"
    subprocess.run(["gcc", "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-o", target, source], check=True)
    target.chmod(0o755)
    for place in target.parents:
        if place == Path(tempfile.gettempdir()):
            break
        place.chmod(0o755)
    return target
