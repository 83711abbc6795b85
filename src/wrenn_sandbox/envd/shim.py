"""Starting a program through ``exec-shim`` (guest/exec-shim.c), the cheapest way there is.

posix_spawn(3) shares envd's memory until the exec, so nothing is copied, however big envd is; one exec of a small
static program does what has to be done in the child, the second is the program.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.envd.context import GuestContext
from wrenn_sandbox.envd.users import User

#: Where a shim is found outside a guest.
SHIM_VARIABLE = "WRENN_EXEC_SHIM"
#: oom_score_adj of user programs: the kernel takes them long before envd.
CHILD_OOM_SCORE_ADJ = 100
CHILD_NICE = 0
#: The customary soft limit of open files; envd raises its own.
CHILD_OPEN_FILES = 1024


@dataclass(frozen=True, slots=True)
class Launch:
    """A program to start. ``fds`` become its descriptors 0, 1 and 2; ``terminal``: 0 is to control its session."""

    command: tuple[bytes, ...]
    environment: dict[bytes, bytes]
    user: User
    workdir: str
    fds: tuple[int, int, int]
    terminal: bool
    cgroup_procs: Path | None


def shim_path(context: GuestContext) -> Path:
    """Where the shim is."""
    if context.tools_dir is not None:
        return context.tools_dir / "bin" / "exec-shim"
    found = os.environ.get(SHIM_VARIABLE)
    if not found:
        raise ConnectError(
            Code.UNAVAILABLE,
            f"There is no exec-shim: mount the tools disk, or name the compiled shim in {SHIM_VARIABLE}.",
        )
    return Path(found)


def shim_arguments(launch: Launch, *, is_guest: bool, uid: int) -> list[bytes]:
    """The shim's argv. ``uid`` is envd's own: without root nothing is asked for that only root can do."""
    arguments = ["exec-shim", "-d", launch.workdir]
    user = launch.user
    if uid == 0:
        groups = ",".join(map(str, user.groups))
        arguments += ["-u", str(user.uid), "-g", str(user.gid), "-G", groups]
    elif user.uid != uid:
        raise ConnectError(Code.PERMISSION_DENIED, f"envd does not run as root, so it cannot become '{user.name}'.")
    if is_guest:
        arguments += ["-o", str(CHILD_OOM_SCORE_ADJ), "-n", str(CHILD_NICE), "-f", str(CHILD_OPEN_FILES)]
    if launch.cgroup_procs is not None:
        arguments += ["-c", str(launch.cgroup_procs)]
    if launch.terminal:
        arguments.append("-t")
    return [*map(os.fsencode, arguments), b"--", *launch.command]


def spawn(context: GuestContext, launch: Launch) -> int:
    """Start it; the pid, which is also its process group and session. ConnectError when the kernel refuses."""
    shim = shim_path(context)
    arguments = shim_arguments(launch, is_guest=context.is_guest, uid=os.geteuid())
    duplicates = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(launch.fds)]
    try:
        # setsid here and not only in the shim: the group exists when this returns, so a signal cannot come too early.
        return os.posix_spawn(shim, arguments, launch.environment, file_actions=duplicates, setsid=True)
    except OSError as error:
        raise spawn_error(error) from error


def spawn_error(error: OSError) -> ConnectError:
    """What a refusal of the kernel means for who asked."""
    match error.errno:
        case errno.E2BIG:
            return ConnectError(
                Code.INVALID_ARGUMENT, "The arguments and variables are longer than Linux allows; pass them in a file."
            )
        case errno.EAGAIN | errno.ENOMEM | errno.EMFILE | errno.ENFILE:
            return ConnectError(
                Code.RESOURCE_EXHAUSTED, f"The sandbox has no room for another process now: {error.strerror}."
            )
        case _:
            return ConnectError(Code.INTERNAL, f"The process could not be started: {error.strerror}.")
