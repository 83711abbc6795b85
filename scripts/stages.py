"""Runs the stages of `make check` and `make test`, each with its time and its budget.

A stage that fails does not keep the later ones from running; the last lines say what failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"


@dataclass(frozen=True)
class Stage:
    """A command, the seconds it should take on 2 cores, and perhaps a second command that runs beside it."""

    name: str
    budget_s: int
    command: tuple[str, ...]
    beside: tuple[str, ...] = ()


def _python(*arguments: str) -> tuple[str, ...]:
    return (str(BIN / "python"), "-m", *arguments)


LAYOUT = ("tests/unit/test_layout.py", "tests/unit/test_docs.py", "tests/unit/test_errors_page.py")
#: Three, as much of it is waiting, each in a network of its own; the tests of a file share fixtures and stay together.
WORKERS = ("--dist", "loadfile", "--tx", "3*popen//python=tests/worker")
#: No test looks at pytest's copy of the log, and the files of one that passed are of no use.
LIGHT = ("-q", "-p", "no:logging", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "tmp_path_retention_policy=failed")
#: About half of the unit tests' time. The rest is all others: two processes that each import what their half needs
#: take a third less than two workers that import, collect and report everything.
HALF = tuple(f"tests/unit/{name}" for name in ("disk", "envd", "hostagent", "image", "net", "rpc", "vmm"))
REST = ("tests/unit", *(f"--ignore={folder}" for folder in HALF))
CHECKS = (
    Stage("format", 5, (str(BIN / "ruff"), "format", "--check", "-q", "src", "tests", "scripts")),
    Stage("lint", 5, (str(BIN / "ruff"), "check", "-q", "src", "tests", "scripts")),
    Stage("imports", 10, (str(BIN / "lint-imports"), "--no-cache", "--config", "pyproject.toml")),
    Stage("types", 20, _python("mypy")),
    Stage("layout", 5, _python("pytest", "-q", *LAYOUT)),
)
TESTS = (
    Stage("unit", 10, _python("pytest", *LIGHT, *REST), beside=_python("pytest", *LIGHT, *HALF)),
    Stage("platform", 300, _python("pytest", "-q", *WORKERS, "tests/contract", "tests/platform")),
    Stage("machine", 900, _python("pytest", "-q", "tests/machine")),
)


def _environment() -> dict[str, str]:
    """This one, but byte code is kept: every process that a test starts would compile its imports anew."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _run(stage: Stage) -> int:
    with tempfile.TemporaryFile("w+") as said:
        beside = None
        if stage.beside:
            beside = subprocess.Popen(stage.beside, cwd=ROOT, env=_environment(), stdout=said, stderr=said)
        code = subprocess.run(stage.command, cwd=ROOT, env=_environment(), check=False).returncode
        if beside is not None:
            code = beside.wait() or code
            said.seek(0)
            print(said.read(), flush=True)
        return code


def main(arguments: list[str]) -> int:
    """Run ``check``, or all; the exit code says whether all passed."""
    stages = CHECKS if arguments == ["check"] else (*CHECKS, *TESTS)
    failed, lines = [], []
    for stage in stages:
        print(f"\n── {stage.name} " + "─" * (70 - len(stage.name)), flush=True)
        started = time.monotonic()
        code = _run(stage)
        took = time.monotonic() - started
        if code:
            failed.append(stage.name)
        mark = "FAILED" if code else "ok"
        over = "  over its budget" if took > stage.budget_s else ""
        lines.append(f"  {stage.name:<10} {mark:<7} {took:7.1f} s of {stage.budget_s} s{over}")
    print("\n" + "\n".join(lines))
    print(f"failed: {', '.join(failed)}" if failed else "all stages passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
