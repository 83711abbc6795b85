"""Entry point of the ``wrenn`` command."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from wrenn_sandbox import __version__
from wrenn_sandbox.cli import doctor, image, sandbox, snapshot, up
from wrenn_sandbox.core.errors import WrennError

app = typer.Typer(
    name="wrenn",
    help="Self-hosted microVM sandboxes for untrusted code.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("doctor")(doctor.doctor)
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(image.app, name="image")


@app.command("version")
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command line; an error the user can act on is one line and exit code 1, a wrong usage 2, Ctrl-C 130."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a reader that has gone can still be told apart
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except WrennError as error:
        _fail(f"{error.message} [{error.slug}]")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))


def _fail(text: str) -> NoReturn:
    print(f"wrenn: {text}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
