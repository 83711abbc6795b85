"""One VMM as an artefact: QEMU, its library closure, its loader and its firmware under a content hash.

An upgrade of the machine's QEMU makes a new runtime and leaves the old one to the builds that need it.

::

    runtimes/<digest>/bin/qemu-system-x86_64, qemu-img, qemu-storage-daemon (where the host has it)
                      lib/ld-linux-x86-64.so.2 and every library
                      share/qemu/          firmware of the microvm machine
                      version              e.g. 10.0.2
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePath

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.command import find_tool, missing_tool, run
from wrenn_sandbox.image.recipe import Product, Recipe, code, fingerprint
from wrenn_sandbox.image.store import tree_digest

LOADER = "lib/ld-linux-x86-64.so.2"
VMM, IMAGE_TOOL, STORAGE_DAEMON = "qemu-system-x86_64", "qemu-img", "qemu-storage-daemon"
OLDEST_VERSION = (9, 0)
#: What ``-M microvm`` and ``-kernel`` read, found by starting it in an empty folder; kvmvapic.bin only under KVM.
FIRMWARE = ("bios-microvm.bin", "qboot.rom", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin")
_FIRMWARE_FOLDERS = (Path("/usr/share/qemu"), Path("/usr/share/seabios"))
_FIRMWARE_PACKAGES = "qemu-system-data and seabios"
_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Runtime:
    """A published runtime on this host.

    Every command goes through the runtime's own loader, so it is the same on the host and in a jail that holds nothing
    but the runtime: pass ``root`` as the place where the runtime is mounted there, e.g. ``PurePath("/runtime")``.
    """

    path: Path

    def argv0(self, root: PurePath | None = None) -> PurePath:
        """The file to execute: the loader."""
        return (root or self.path) / LOADER

    def command(self, root: PurePath | None = None) -> tuple[str, ...]:
        """The VMM's command line up to where its own arguments begin."""
        return (*self._program(VMM, root), "-L", str((root or self.path) / "share" / "qemu"))

    def image_tool(self, root: PurePath | None = None) -> tuple[str, ...]:
        """qemu-img's command line up to where its own arguments begin."""
        return self._program(IMAGE_TOOL, root)

    def storage_daemon(self, root: PurePath | None = None) -> tuple[str, ...]:
        """qemu-storage-daemon's command line up to where its own arguments begin."""
        return self._program(STORAGE_DAEMON, root)

    @property
    def version(self) -> str:
        """The VMM's version, e.g. ``10.0.2``."""
        return (self.path / "version").read_text().strip()

    def _program(self, name: str, root: PurePath | None) -> tuple[str, ...]:
        base = root or self.path
        return (
            str(base / LOADER),
            "--inhibit-cache",
            "--library-path",
            str(base / "lib"),
            "--argv0",
            name,
            str(base / "bin" / name),
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """The host files a runtime is copied from."""

    version: str
    programs: tuple[Path, ...]
    libraries: tuple[Path, ...]
    loader: Path
    firmware: tuple[Path, ...]

    def identity(self) -> str:
        """Changes when any of the files does (path, size, time of change)."""
        files = (*self.programs, *self.libraries, self.loader, *self.firmware)
        stats = [(str(path), path.stat()) for path in files]
        return "\n".join([self.version, *(f"{name} {info.st_size} {info.st_mtime_ns}" for name, info in stats)])


def parse_version(output: str) -> str:
    """The version in ``qemu-system-x86_64 --version``; raises Unavailable (``qemu_too_old``) below 9.0."""
    found = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", output)
    if found is None:
        raise Unavailable(f"{VMM} does not say its version: {output[:100]!r}.", slug="qemu_too_old")
    version = found.group(0).removeprefix("version ")
    if (int(found.group(1)), int(found.group(2))) < OLDEST_VERSION:
        raise Unavailable(
            f"QEMU {version} is too old, 9.0 or later is needed: on Debian 12 install qemu-system-x86 from"
            " bookworm-backports (`make setup` does it).",
            slug="qemu_too_old",
        )
    return version


def parse_ldd(output: str) -> tuple[tuple[Path, ...], Path]:
    """Libraries and loader in ``ldd`` output; raises Unavailable when a library is missing."""
    libraries, loader = [], None
    for line in output.splitlines():
        words = line.split()
        if "=>" in words:
            if "not found" in line:
                raise Unavailable(f"{VMM} lacks {words[0]}: reinstall its package.", slug="tool_missing")
            libraries.append(Path(words[2]))
        elif words and words[0].startswith("/"):
            loader = Path(words[0])
    if loader is None:
        raise Unavailable(f"{VMM} is not a dynamic program: install Debian's qemu-system-x86.", slug="tool_missing")
    return tuple(libraries), loader


async def find_parts() -> Parts:
    """Look at the host's QEMU."""
    programs = [find_tool(VMM), find_tool(IMAGE_TOOL)]
    try:
        programs.append(find_tool(STORAGE_DAEMON))
    except Unavailable:
        pass  # only the Firecracker driver exports disks with it
    version = parse_version(await run(programs[0], "--version", timeout_s=_TIMEOUT_S))
    libraries: dict[str, Path] = {}
    loader = Path()
    for program in programs:
        found, loader = parse_ldd(await run("ldd", program, timeout_s=_TIMEOUT_S))
        libraries.update({path.name: path for path in found})
    ordered = tuple(libraries[name] for name in sorted(libraries))
    return Parts(version, tuple(programs), ordered, loader, tuple(_find_firmware(name) for name in FIRMWARE))


def _find_firmware(name: str) -> Path:
    for folder in _FIRMWARE_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise missing_tool(f"{name} ({_FIRMWARE_PACKAGES})")


async def recipe() -> Recipe:
    """How the runtime is made from the QEMU this host has now."""
    parts = await find_parts()

    async def make(scratch: Path) -> Product:
        product = scratch / "product"
        copies = {product / "bin" / path.name: path for path in parts.programs}
        copies |= {product / "lib" / path.name: path for path in parts.libraries}
        copies |= {product / "share" / "qemu" / path.name: path for path in parts.firmware}
        copies[product / LOADER] = parts.loader
        for target, source in copies.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if target.parent.name in {"bin", "lib"} else 0o644)
        (product / "version").write_text(parts.version + "\n")
        await run(*Runtime(product).command(), "--version", timeout_s=_TIMEOUT_S)
        return Product(product, tree_digest(product), {"version": parts.version})

    return Recipe(
        name="runtime",
        kind="runtimes",
        doing=f"copying QEMU {parts.version} and its libraries",
        key=fingerprint(parts.identity(), code(__file__)),
        packages=(),
        make=make,
    )
