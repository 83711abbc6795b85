"""The base root file system: a Debian that people know, with user ``user``, as a sparse ext4 image."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from uuid import UUID, uuid5

from wrenn_sandbox.core.errors import Denied
from wrenn_sandbox.image.command import run
from wrenn_sandbox.image.debian import ARCHITECTURE, SUITE, Mirror
from wrenn_sandbox.image.recipe import EPOCH_S, Product, Recipe, code, fingerprint
from wrenn_sandbox.image.store import file_digest

PACKAGES = (
    "bash", "coreutils", "util-linux", "procps", "psmisc", "python3", "python3-pip", "python3-venv",
    "python-is-python3", "nodejs", "npm", "git", "curl", "wget", "sudo", "build-essential", "socat", "chrony",
    "ca-certificates", "iproute2", "iputils-ping", "netbase", "tzdata", "less", "jq", "nano", "fuse3", "openssh-client",
    "unzip", "xz-utils", "file", "kmod",
)  # fmt: skip
HOSTNAME = "sandbox"
USER, USER_ID = "user", 1000
DEFAULT_SIZE_MIB = 8192
#: Chosen here, not by the host's mke2fs.conf, so that every host makes what kernel 6.1 and older tools read.
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
#: mke2fs.conf(5); all that counts is on the command line.
_MKE2FS_CONFIG = "[defaults]\n\tblocksize = 4096\n\n[fs_types]\n\text4 = {\n\t\tinode_size = 256\n\t}\n"
#: A journal's blocks are written round and round and end up in every overlay: a small one keeps layers small.
_JOURNAL_MIB = 16
_NAMESPACE = UUID("7a6f5ae4-29b5-4d3c-8f6a-5b8a3c0f9d11")
_BOOTSTRAP_TIMEOUT_S = 900
_FETCH_SETTING = re.compile(r"Acquire::(https?|Check-[\w-]+|Retries|ForceIPv[46])\b")
#: mmdebstrap mounts /proc and /sys in the tree; in namespaces of its own, killing it takes mounts and children along,
#: and it dies with us, even when we are killed.
_APART = (
    "setpriv", "--pdeathsig", "KILL", "--",
    "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--",
)  # fmt: skip
_FORMAT_TIMEOUT_S = 300

#: Written over the bootstrapped tree.
_FILES = {
    "etc/hostname": f"{HOSTNAME}\n",
    "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {HOSTNAME}\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/machine-id": "",  # given by envd at each restore
    "etc/resolv.conf": "",
    "etc/fstab": "",
    "etc/sudoers.d/user": f"{USER} ALL=(ALL:ALL) NOPASSWD: ALL\nDefaults:{USER} !fqdn\n",
    # A sandbox is nobody's system to protect from pip: `pip install` works as in a fresh Python.
    "etc/pip.conf": "[global]\nbreak-system-packages = true\ndisable-pip-version-check = true\n",
    "etc/apt/apt.conf.d/90sandbox": 'APT::Install-Recommends "false";\nAcquire::Languages "none";\n',
}
_LEFTOVERS = (
    "var/lib/apt/lists", "var/cache/apt", "var/cache/debconf", "var/cache/ldconfig", "var/log", "tmp", "var/tmp", "run",
    "etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/sources.list.d", "root/.cache", "var/lib/dbus/machine-id",
    "etc/.pwd.lock", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
)  # fmt: skip
_EMPTY_FOLDERS = {
    "var/lib/apt/lists/partial": 0o755, "var/cache/apt/archives/partial": 0o755, "var/cache/debconf": 0o755,
    "var/log/apt": 0o755, "tmp": 0o1777, "var/tmp": 0o1777, "run": 0o755, "proc": 0o555, "sys": 0o555,
}  # fmt: skip


def recipe(mirror: Mirror, size_mib: int = DEFAULT_SIZE_MIB) -> Recipe:
    """How the base root file system is made; ``size_mib`` is its virtual size."""

    async def make(scratch: Path) -> Product:
        if os.geteuid() != 0:
            raise Denied("Building a root file system needs root: use sudo.", slug="root_required")
        root, product = scratch / "root", scratch / "product"
        await _bootstrap(mirror, root)
        await _settle(mirror, root)
        product.mkdir()
        await format_ext4(root, product / "rootfs.ext4", size_mib)
        shutil.rmtree(root)
        return Product(product, file_digest(product / "rootfs.ext4"))

    return Recipe(
        name="rootfs",
        kind="rootfs",
        doing=f"bootstrapping Debian {SUITE} with {len(PACKAGES)} packages",
        key=fingerprint(" ".join(PACKAGES), str(size_mib), code(__file__)),
        packages=PACKAGES,
        make=make,
    )


async def format_ext4(tree: Path, image: Path, size_mib: int) -> None:
    """Make a sparse ext4 image of ``size_mib`` from a folder; equal folders give equal images.

    Nothing is left for the first mount to initialise, so that a sandbox's first boot writes little.
    """
    identity = uuid5(_NAMESPACE, f"{size_mib}")
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    options = f"lazy_itable_init=0,lazy_journal_init=0,hash_seed={identity}"
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as config:
        config.write(_MKE2FS_CONFIG)
        config.flush()
        await run(
            "mke2fs", "-q", "-t", "ext4", "-O", _FEATURES, "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
            "-L", "root", "-J", f"size={_JOURNAL_MIB}", "-U", str(identity), "-E", options, "-d", tree, image,
            timeout_s=_FORMAT_TIMEOUT_S, env={"E2FSPROGS_FAKE_TIME": str(EPOCH_S), "MKE2FS_CONFIG": config.name},
        )  # fmt: skip


def fetch_settings(dumped: str) -> list[str]:
    """Those lines of ``apt-config dump`` that say how to reach a mirror and how much to trust its dates."""
    return [line for line in dumped.splitlines() if _FETCH_SETTING.match(line) and not line.endswith('"";')]


async def _bootstrap(mirror: Mirror, root: Path) -> None:
    """Debian, configured, as a folder. The host's apt settings for fetching (proxy, checks) hold inside too."""
    dumped = await run("apt-config", "dump", "Acquire", timeout_s=_FORMAT_TIMEOUT_S)
    settings = [f"--aptopt={line}" for line in fetch_settings(dumped)]
    await run(
        *_APART, "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--architectures={ARCHITECTURE}",
        *settings, '--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/info/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--include={','.join(PACKAGES)}", SUITE, root, "-",
        stdin=mirror.sources().encode(), timeout_s=_BOOTSTRAP_TIMEOUT_S, env={"SOURCE_DATE_EPOCH": str(EPOCH_S)},
    )  # fmt: skip


async def _settle(mirror: Mirror, root: Path) -> None:
    """The user, our files, and nothing left of the bootstrap."""
    await run(
        "chroot", root, "useradd", "--create-home", "--uid", str(USER_ID), "--user-group", "--shell", "/bin/bash",
        "--groups", "sudo", USER, timeout_s=_FORMAT_TIMEOUT_S,
    )  # fmt: skip
    for name in _LEFTOVERS:
        victim = root / name
        if victim.is_dir() and not victim.is_symlink():
            shutil.rmtree(victim)
        else:
            victim.unlink(missing_ok=True)
    for name, mode in _EMPTY_FOLDERS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    for name, text in {**_FILES, "etc/apt/sources.list": mirror.sources()}.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o440 if "sudoers" in name else 0o644)
    for path in (root, *root.rglob("*")):  # times of equal trees are equal
        if path.lstat().st_mtime > EPOCH_S:
            os.utime(path, (EPOCH_S, EPOCH_S), follow_symlinks=False)
