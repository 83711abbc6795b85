"""Runs in a VMM's place, as its user, in its jail: tries to reach what it must not, and reports each outcome as JSON.

The last argument is a JSON object of what the test prepared outside. An outcome is an errno name, or what was gained.
"""

# ruff: noqa: SIM115, PTH101, PTH208
import ctypes
import errno
import json
import os
import resource
import socket
import sys
import time


def outcome(attempt):
    try:
        return f"GOT {attempt()!r}"[:120]
    except ValueError as error:  # what setrlimit makes of EPERM
        return "EPERM" if "not allowed" in str(error) else repr(error)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def libc(name, *arguments):
    library = ctypes.CDLL(None, use_errno=True)
    result = getattr(library, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def connect(family, address):
    with socket.socket(family) as client:
        client.settimeout(2)
        client.connect(address)


def main(outside):
    attempts = {
        "read another sandbox's disk": lambda: open(outside["secret"], "rb").read(4),
        "read it through the old root": lambda: open("../../../../.." + outside["secret"], "rb").read(4),
        "list the data directory": lambda: os.listdir(outside["directory"]),
        "look at the host's processes": lambda: os.listdir("/proc"),
        "mount /proc": lambda: libc("mount", b"proc", b"/dev", b"proc", 0, None),
        "signal the agent": lambda: os.kill(outside["agent"], 0),
        "signal another VMM": lambda: os.kill(outside["neighbour"], 0),
        "trace the agent": lambda: libc("ptrace", 16, outside["agent"], 0, 0),
        "trace another VMM": lambda: libc("ptrace", 16, outside["neighbour"], 0, 0),
        "connect to the host's loopback": lambda: connect(socket.AF_INET, ("127.0.0.1", outside["port"])),
        "connect to the metadata address": lambda: connect(socket.AF_INET, ("169.254.169.254", 80)),
        "connect to an abstract socket": lambda: connect(socket.AF_UNIX, "\0" + outside["abstract"]),
        "attach the host's shared memory": lambda: libc("shmget", outside["shm"], 0, 0),
        "become root": lambda: os.setuid(0),
        "change group": lambda: os.setgid(0),
        "make a user namespace": lambda: libc("unshare", 0x10000000),
        "make a mount namespace": lambda: libc("unshare", 0x00020000),
        "make a device": lambda: os.mknod("/dev/sda", 0o060666, os.makedev(8, 0)),
        "leave by chroot": lambda: os.chroot("."),
        "write into the root": lambda: open("/file", "w"),
        "write a read-only file": lambda: open("/tools", "r+b"),
        "make it writable": lambda: os.chmod("/tools", 0o666),
        "remount it": lambda: libc("mount", None, b"/tools", None, 0x1020, None),
        "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)),
        "write its own disk": lambda: open("/disk", "r+b").write(b"mine"),
    }
    report = {name: outcome(attempt) for name, attempt in attempts.items()}
    facts = {
        "pid": os.getpid(),
        "uid": os.getresuid(),
        "groups": os.getgroups(),
        "root": sorted(os.listdir("/")),
        "dev": sorted(os.listdir("/dev")),
        "host": socket.gethostname(),
        "links": [name for _, name in socket.if_nameindex()],
        "environment": sorted(os.environ),
    }
    print(json.dumps({"attempts": report, "facts": facts}), flush=True)
    while True:
        time.sleep(60)


main(json.loads(sys.argv[1]))
