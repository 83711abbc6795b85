"""Become a jailed VMM: run by ``python -I -S`` with one end of a SOCK_SEQPACKET pair as descriptor 3.

This runs between the agent and the VMM on every create, so it imports next to nothing and knows nothing of the rest::

    agent                 this process                                       its child
      │ ── plan ────────────▶ unshare, mount, pivot_root, drop rights
      │                       fork ───────────────────────────────────────▶ first process of the pid namespace
      │ ◀─ pid, as the host counts ── exit                                   waits
      │  holds the pidfd, writes it down
      │ ── "go" ───────────────────────────────────────────────────────────▶ exec
      │ ◀─ end of file: it runs; else a sentence what failed ───────────────

No process of ours stays beside the VMM. If the agent dies before "go", the child reads end of file and goes too, so a
VMM that nobody has written down never runs. The plan is a marshalled dict, written by ``launch`` in the same
interpreter: json would cost more to import than all of this to run.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import stat
import sys

CONTROL_FD = 3
#: Length of the longest plan and report.
MESSAGE_BYTES = 128 * 1024

# linux/sched.h
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
# linux/mount.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 0x1, 0x2, 0x4, 0x8, 0x20
_MS_NOATIME, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x400, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
# linux/prctl.h
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING = 250, 1  # asm/unistd_64.h, linux/keyctl.h
_LAST_CAPABILITY = 63

#: Directory of the tmpfs that becomes the jail's root.
_INNER = "/jail"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what + ": " + os.strerror(ctypes.get_errno()))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    done = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _check(done, f"mount {source} on {target}")


def _make_root(
    root: str, files: list[tuple[str, str, bool]], devices: list[tuple[str, int, int, int]], uid: int
) -> None:
    """Mount a tmpfs on ``root`` that holds ``files`` (source, name, writable) and ``devices`` (name, number, mode)."""
    # Sources are opened first, since the tmpfs may cover some of them.
    sources = [os.open(source, os.O_PATH | os.O_CLOEXEC) for source, _, _ in files]
    _mount("wrenn", root, "tmpfs", _MS_NOSUID | _MS_NOEXEC, "size=64k,nr_inodes=128,mode=755")
    top, root = root, root + _INNER
    os.mkdir(root, 0o755)  # noqa: PTH102
    for fd, (_, name, writable) in zip(sources, files, strict=True):
        target = root + name
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)  # noqa: PTH103, PTH120 - pathlib is slow to import
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.mkdir(target, 0o755)  # noqa: PTH102
            flags = _MS_NOSUID | _MS_NODEV
        else:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
            flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        _mount(f"/proc/self/fd/{fd}", target, None, _MS_BIND)
        _mount(None, target, None, _MS_REMOUNT | _MS_BIND | _MS_NOATIME | flags | (0 if writable else _MS_RDONLY))
        os.close(fd)
    os.mkdir(root + "/dev", 0o755)  # noqa: PTH102
    for name, major, minor, mode in devices:
        os.mknod(f"{root}/dev/{name}", stat.S_IFCHR | mode, os.makedev(major, minor))
        os.chown(f"{root}/dev/{name}", uid, uid)
    _mount(None, top, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NOEXEC)


def _enter_root(root: str) -> None:
    """Make the jail in ``root`` the root and let go of the old one (pivot_root(2), NOTES on pivot_root(".", "."))."""
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    # A process whose root is not that of its mount namespace may make no user namespace (unshare(2), EPERM), in which
    # it would be root again over much of the kernel. Leaving a chroot takes a capability, and all of those go.
    os.chroot(_INNER)
    os.chdir("/")


def _drop_rights(uid: int, gid: int, limits: list[tuple[int, int]]) -> None:
    for kind, value in limits:
        resource.setrlimit(kind, (value, value))
    _libc.syscall(
        _SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None
    )  # fails on kernels without keys: nothing to leave then
    for capability in range(_LAST_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # past the last one this kernel knows
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)  # capabilities go with the root uid (capabilities(7))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _prepare(plan: dict[str, object]) -> None:
    os.umask(0)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(plan["oom_score_adj"]))
    flags = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    _check(_libc.unshare(flags), "unshare")
    _check(_libc.sethostname(b"vmm", 3), "sethostname")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    root = str(plan["root"])
    _make_root(root, plan["files"], plan["devices"], plan["uid"])  # type: ignore[arg-type]
    _enter_root(root)


def main() -> None:
    """Follow the plan. Every failure is reported through the control socket as a sentence."""
    try:
        plan = marshal.loads(os.read(CONTROL_FD, MESSAGE_BYTES))  # noqa: S302 - from our own agent, over its socket pair
        os.set_inheritable(CONTROL_FD, False)
        os.closerange(plan["first_unused_fd"], 1 << 20)
        _prepare(plan)
        child = os.fork()
        if child:
            os.write(CONTROL_FD, b"%d" % child)
            os._exit(0)
        os.setsid()
        _drop_rights(plan["uid"], plan["gid"], plan["limits"])
        if os.read(CONTROL_FD, 2) == b"go":
            os.execve(plan["argv"][0], plan["argv"], plan["env"])  # noqa: S606
    except BaseException as error:
        os.write(CONTROL_FD, f"error: {error}".encode()[:4096])
    os._exit(1)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
