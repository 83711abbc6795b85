"""The exec shim of a fake machine: a real guest has it on its tools disk, a process of this host needs one compiled."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.command import run
from wrenn_sandbox.image.recipe import Sources, fingerprint

#: Names a compiled shim; without it one is compiled. envd reads the same variable.
SHIM_VARIABLE = "WRENN_EXEC_SHIM"
_COMPILE_LIMIT_S = 60.0


async def found_shim(cache: Path) -> Path:
    """The shim named by ``WRENN_EXEC_SHIM``, else one compiled from the checkout, once, into the folder ``cache``.

    Raises Unavailable (``shim_missing``).
    """
    if named := os.environ.get(SHIM_VARIABLE):
        if not os.access(named, os.X_OK):
            raise Unavailable(f"{SHIM_VARIABLE} names {named}, which is no program.", slug="shim_missing")
        return Path(named)
    try:
        return await _compiled(Sources.of_checkout().guest / "exec-shim.c", cache)
    except Unavailable as error:
        raise Unavailable(
            f"The fake VMM starts programs through guest/exec-shim.c: compile it with gcc and name the result in "
            f"{SHIM_VARIABLE}. It could not be done here: {error.message}",
            slug="shim_missing",
        ) from error


async def _compiled(source: Path, cache: Path) -> Path:
    shim = cache / f"exec-shim-{fingerprint(source)}"
    if shim.exists():
        return shim
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as scratch:
        made = Path(scratch) / shim.name
        await run("gcc", "-Os", "-o", made, source, timeout_s=_COMPILE_LIMIT_S)
        made.chmod(0o755)  # users of the fake guest run it
        made.replace(shim)
    cache.chmod(0o755)
    return shim
