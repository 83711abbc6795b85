"""The tools disk: everything of ours that runs inside a sandbox, independent of what its root file system holds.

::

    bin/busybox bin/tini bin/exec-shim     static
    bin/python bin/socat bin/chronyd bin/chronyc   sh wrappers that start the real program through our own loader
    usr/bin, usr/sbin, usr/lib/python3.11  the real programs
    usr/lib/x86_64-linux-gnu/              the loader and the library closure
    site/                                  wheels, and the parts of wrenn_sandbox that envd needs
    modules/<release>/                     the kernel's module tree
    sbin/wrenn-init  VERSION

Made in two stages, so that a change of our own sources costs seconds: ``toolbase`` holds what comes from outside.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.command import run
from wrenn_sandbox.image.debian import GuestApt, unpack
from wrenn_sandbox.image.recipe import EPOCH_S, Product, Recipe, Sources, code, fingerprint
from wrenn_sandbox.image.store import file_digest, tree_digest

MOUNT_POINT = "/run/wrenn/tools"
PYTHON = "python3.11"
PACKAGES = (
    "libpython3.11-stdlib", "python3.11-minimal", "socat", "chrony", "tini", "busybox-static", "kmod",
)  # fmt: skip
#: Packages of the closure that hold no program or library of ours; unpacking them only takes time.
_UNUSED_PREFIXES = ("perl", "dpkg_", "adduser", "debconf", "usrmerge", "ucf", "tar_", "passwd", "tzdata", "libperl")
#: Parts of the package that envd imports.
GUEST_PARTS = ("core", "rpc", "observe", "envd")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
_STDLIB_DROPPED = (
    "test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data", "distutils", "turtle.py",
    "sitecustomize.py", "LICENSE.txt", "EXTERNALLY-MANAGED",
)  # fmt: skip
_EXTENSIONS_DROPPED = (
    "_curses",
    "_dbm",
    "_gdbm",
    "_tkinter",
    "nis",
    "ossaudiodev",
    "readline",
    "_test",
    "_xx",
    "xx",
    "_sqlite3",
)
_STATIC = {"bin/busybox": "bin/busybox", "usr/bin/tini-static": "bin/tini"}
_DYNAMIC = (f"usr/bin/{PYTHON}", "usr/bin/socat", "usr/sbin/chronyd", "usr/bin/chronyc")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_COPY_TIMEOUT_S = 120
_PIP_TIMEOUT_S = 300
_SQUASH_TIMEOUT_S = 300


def base_recipe(apt: GuestApt, sources: Sources, kernel: Path, kernel_digest: str) -> Recipe:
    """How the outside part is made: Debian programs, Python, wheels, kernel modules."""

    async def make(scratch: Path) -> Product:
        return await _make_base(apt, sources, kernel, scratch)

    return Recipe(
        name="toolbase",
        kind="cache/toolbase",
        doing="collecting Python, wheels and programs for the tools disk",
        key=fingerprint(kernel_digest, " ".join(PACKAGES), sources.lock, code(__file__)),
        packages=PACKAGES,
        make=make,
    )


def recipe(sources: Sources, base: Path, base_digest: str) -> Recipe:
    """How the disk is made from the base and our own sources."""

    async def make(scratch: Path) -> Product:
        return await _make_disk(sources, base, scratch)

    own = [sources.guest / "wrenn-init.sh", sources.guest / "exec-shim.c", *python_files(sources.package)]
    relative = "\n".join(str(path.relative_to(sources.package.parents[1])) for path in own)
    return Recipe(
        name="tools",
        kind="tools",
        doing="building the tools disk",
        key=fingerprint(base_digest, code(__file__), relative, *own),
        packages=(),
        make=make,
    )


def python_files(package: Path) -> list[Path]:
    """The modules of wrenn_sandbox that go into the guest."""
    parts = [path for part in GUEST_PARTS for path in (package / part).rglob("*.py")]
    return [package / "__init__.py", *sorted(parts)]


def wrapper(program: str, before: Iterable[str] = (), arguments: str = "") -> str:
    """A script that starts ``program`` (a path on the disk) through the disk's own loader and libraries."""
    lines = [
        f"#!{MOUNT_POINT}/bin/busybox sh",
        *before,
        f"exec {MOUNT_POINT}/{LOADER} --inhibit-cache --library-path {MOUNT_POINT}/{LIBRARIES} \\",
        f'    {MOUNT_POINT}/{program} {arguments}"$@"',
    ]
    return "\n".join(lines) + "\n"


def wrappers() -> dict[str, str]:
    """All wrappers, by their place. Python's settings reach no user program: envd starts those from nothing."""
    python = (
        f"export PYTHONHOME={MOUNT_POINT}/usr PYTHONPATH={MOUNT_POINT}/site",
        "export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1 PYTHONUTF8=1",
    )
    return {
        "bin/python": wrapper(f"usr/bin/{PYTHON}", python),
        "bin/socat": wrapper("usr/bin/socat"),
        "bin/chronyd": wrapper("usr/sbin/chronyd"),
        "bin/chronyc": wrapper("usr/bin/chronyc", arguments="-h /run/wrenn/chrony/chronyd.sock "),
    }


async def _make_base(apt: GuestApt, sources: Sources, kernel: Path, scratch: Path) -> Product:
    debian, product = scratch / "debian", scratch / "product"
    _merged_usr(debian)
    packages = await apt.download(PACKAGES)
    await unpack([path for path in packages if not path.name.startswith(_UNUSED_PREFIXES)], debian)
    _copy_programs(debian, product)
    await _install_wheels(sources.lock, product / "site")
    modules = next((kernel / "modules").iterdir())
    await run("cp", "-a", modules.parent, product / "modules", timeout_s=_COPY_TIMEOUT_S)
    # depmod(8) wants <base>/lib/modules/<release>
    (scratch / "depmod" / "lib").mkdir(parents=True)
    (scratch / "depmod" / "lib" / "modules").symlink_to(product / "modules")
    await _run_in(debian, "usr/bin/kmod", argv0="depmod", arguments=("-b", str(scratch / "depmod"), modules.name))
    await _copy_libraries(debian, product)
    await _compile(product, product / "usr" / "lib" / PYTHON, product / "site")
    return Product(product, tree_digest(product))


def _merged_usr(root: Path) -> None:
    """The links of a merged /usr, so that packages of either layout unpack into one tree."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


def _copy_programs(debian: Path, product: Path) -> None:
    for source, target in (*_STATIC.items(), *((name, name) for name in _DYNAMIC)):
        (product / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(debian / source, product / target)
    stdlib = product / "usr" / "lib" / PYTHON
    shutil.copytree(
        debian / "usr" / "lib" / PYTHON, stdlib, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in _STDLIB_DROPPED:
        victim = stdlib / name
        if victim.is_dir() and not victim.is_symlink():
            shutil.rmtree(victim)
        else:
            victim.unlink(missing_ok=True)
    for extension in (stdlib / "lib-dynload").glob("*.so"):
        if extension.name.startswith(_EXTENSIONS_DROPPED):
            extension.unlink()
    for config in stdlib.glob("config-*"):
        shutil.rmtree(config)


async def _install_wheels(lock: Path, site: Path) -> None:
    """Wheels for the guest's Python, whatever Python runs this."""
    uv = Path(sys.executable).with_name("uv")
    await run(*installer(uv if uv.exists() else None), "--target", site, "-r", lock, timeout_s=_PIP_TIMEOUT_S)
    shutil.rmtree(site / "bin", ignore_errors=True)


def installer(uv: Path | None) -> tuple[str, ...]:
    """The command that installs locked wheels for the guest; uv weighs markers for the guest, pip for this Python."""
    common = ("--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--python-version", "3.11")
    if uv is not None:
        return (str(uv), "pip", "install", *common, "--python-platform", "x86_64-manylinux_2_28", "--link-mode", "copy")
    platforms = tuple(word for name in _PLATFORMS for word in ("--platform", name))
    return (sys.executable, "-m", "pip", "install", "--no-compile", *common, "--implementation", "cp", *platforms)


async def _run_in(root: Path, program: str, *, argv0: str = "", arguments: Iterable[str] = (), **env: str) -> str:
    """Run a program of the guest's suite on the host, through its own loader, without entering ``root``."""
    loader, libraries = root / LOADER, root / LIBRARIES
    return await run(
        loader, "--inhibit-cache", "--library-path", libraries, "--argv0", argv0 or program, root / program, *arguments,
        timeout_s=_COPY_TIMEOUT_S, env=env,
    )  # fmt: skip


def _elf_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


async def _copy_libraries(debian: Path, product: Path) -> None:
    """Copy the loader and, as the loader itself lists them, all libraries any program or extension needs."""
    folder = product / LIBRARIES
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(debian / LOADER, product / LOADER)
    programs = [product / name for name in _DYNAMIC]
    extensions = [*_elf_files(product / "usr" / "lib" / PYTHON), *_elf_files(product / "site")]
    for path in (*programs, *extensions):
        listed = await run(
            debian / LOADER, "--inhibit-cache", "--library-path", debian / LIBRARIES, "--list", path, timeout_s=30
        )
        for library in needed(listed, debian / LIBRARIES):
            if not (folder / library).exists():
                shutil.copy(debian / LIBRARIES / library, folder / library)


def needed(listed: str, libraries: Path) -> list[str]:
    """Names of the libraries in ``ld.so --list`` output; raises Unavailable when one was not found."""
    names = []
    for line in listed.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if not arrow:
            continue
        if rest.startswith("not found"):
            raise Unavailable(
                f"{name} is in none of the tools disk's packages: add its package to image/tools.py.",
                slug="image_build_failed",
            )
        if rest.startswith(str(libraries)):
            names.append(name)
    return names


async def _compile(product: Path, *folders: Path) -> None:
    """Precompile with the guest's own Python; hashes are not checked at import, the disk is read-only."""
    await _run_in(
        product, f"usr/bin/{PYTHON}",
        arguments=("-m", "compileall", "-q", "-j", "2", "--invalidation-mode", "unchecked-hash",
                   "-s", str(product), "-p", MOUNT_POINT, *map(str, folders)),
        PYTHONHOME=str(product / "usr"), PYTHONPATH="", PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip


async def _make_disk(sources: Sources, base: Path, scratch: Path) -> Product:
    tree, product = scratch / "tree", scratch / "product"
    await run("cp", "-al", base, tree, timeout_s=_COPY_TIMEOUT_S)  # links: the base is only read from here on
    own = tree / "site" / "wrenn_sandbox"
    for path in python_files(sources.package):
        target = own / path.relative_to(sources.package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    await _compile(tree, own)
    for name, text in wrappers().items():
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)
    (tree / "sbin").mkdir()
    shutil.copyfile(sources.guest / "wrenn-init.sh", tree / "sbin" / "wrenn-init")
    (tree / "sbin" / "wrenn-init").chmod(0o755)
    await run(
        "gcc", "-static", "-Os", "-Wall", "-Werror", "-s", "-o", tree / "bin" / "exec-shim",
        sources.guest / "exec-shim.c", timeout_s=_COPY_TIMEOUT_S,
    )  # fmt: skip
    (tree / "VERSION").write_text(fingerprint(*python_files(sources.package)) + "\n")
    product.mkdir()
    await run(
        "mksquashfs", tree, product / "tools.squashfs", "-quiet", "-no-progress", "-all-root", "-no-xattrs",
        "-comp", "zstd", "-Xcompression-level", "6", "-all-time", str(EPOCH_S), "-mkfs-time", str(EPOCH_S),
        timeout_s=_SQUASH_TIMEOUT_S,
    )  # fmt: skip
    return Product(product, file_digest(product / "tools.squashfs"))
