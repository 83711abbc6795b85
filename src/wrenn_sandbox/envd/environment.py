"""The environment of a guest process, built from nothing: envd's own never reaches a user's program."""

from __future__ import annotations

from collections.abc import Mapping

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.envd.users import User

#: Debian's for root; without the sbin directories an ordinary user misses ``ip`` and the like, so everyone gets it.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(user: User, guest: Mapping[str, str], request: Mapping[str, str]) -> dict[bytes, bytes]:
    """What a process of ``user`` gets: the account's, the guest's, the request's variables; later ones win.

    ConnectError ``invalid_argument`` for a name or value that no environment can hold (environ(7)).
    """
    account = {
        "PATH": DEFAULT_PATH,
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": user.shell,
    }
    merged = {**account, **guest, **request}
    return {_name(name): argument(value, f"the variable {name!r}") for name, value in merged.items()}


def argument(text: str, what: str) -> bytes:
    """``text`` as execve(2) takes it; ConnectError ``invalid_argument``, naming ``what``, when it cannot be."""
    if "\0" in text:
        raise ConnectError(Code.INVALID_ARGUMENT, f"{what} contains a NUL character; remove it.")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ConnectError(Code.INVALID_ARGUMENT, f"{what} is not valid Unicode text.") from None


def _name(name: str) -> bytes:
    if not name or "=" in name:
        raise ConnectError(
            Code.INVALID_ARGUMENT, f"{name!r} cannot be the name of a variable: it is empty or contains '='."
        )
    return argument(name, f"the variable name {name!r}")
