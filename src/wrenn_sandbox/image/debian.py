"""Debian packages for the guest, of the guest's own suite, whatever suite the host runs.

A private apt (own lists, own cache, empty package database) downloads and dpkg-deb unpacks; nothing is installed on the
host. Mirrors are those the host's apt uses, so a site's proxy or mirror holds here too, or WRENN_DEBIAN_MIRROR.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.command import run

SUITE = "bookworm"
ARCHITECTURE = "amd64"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "WRENN_DEBIAN_MIRROR"
SECURITY_MIRROR_VARIABLE = "WRENN_DEBIAN_SECURITY_MIRROR"

_SUITES = r"(?:oldoldstable|oldstable|stable|testing|unstable|sid|bullseye|bookworm|trixie|forky|duke)"
_ARCHIVE = re.compile(rf"{_SUITES}(?:-updates|-backports)?")
_SECURITY = re.compile(rf"{_SUITES}-security")
_TARGET_FORMAT = "$(REPO_URI)|$(RELEASE)|$(CREATED_BY)"
_UPDATE_TIMEOUT_S = 180
_DOWNLOAD_TIMEOUT_S = 600
_QUERY_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where packages come from. ``security`` is empty when the host's apt names no security archive."""

    archive: str
    security: str
    keyring: Path = KEYRING

    def sources(self, signed_by: bool = True) -> str:
        """The lines of a sources.list for the guest's suite."""
        options = f"[signed-by={self.keyring}] " if signed_by else ""
        lines = [f"deb {options}{self.archive} {suite} main" for suite in (SUITE, f"{SUITE}-updates")]
        if self.security:
            lines.append(f"deb {options}{self.security} {SUITE}-security main")
        return "\n".join(lines) + "\n"


def mirror_from_targets(targets: str, variables: Mapping[str, str]) -> Mirror:
    """Choose the mirrors from ``apt-get indextargets`` lines (``uri|release|created-by``) and the environment.

    Raises Unavailable (``no_debian_mirror``) when neither names one.
    """
    archive, security = variables.get(MIRROR_VARIABLE, ""), variables.get(SECURITY_MIRROR_VARIABLE, "")
    for line in targets.splitlines():
        uri, _, rest = line.partition("|")
        release, _, created_by = rest.partition("|")
        if created_by != "Packages":
            continue
        if not archive and _ARCHIVE.fullmatch(release):
            archive = uri
        if not security and _SECURITY.fullmatch(release):
            security = uri
    if not archive:
        raise Unavailable(
            f"This machine's apt names no Debian mirror: set {MIRROR_VARIABLE} to one (e.g. http://<host>/debian).",
            slug="no_debian_mirror",
        )
    return Mirror(archive=archive, security=security)


async def find_mirror() -> Mirror:
    """The mirrors of this machine."""
    targets = ""
    if MIRROR_VARIABLE not in os.environ or SECURITY_MIRROR_VARIABLE not in os.environ:
        targets = await run("apt-get", "indextargets", "--format", _TARGET_FORMAT, timeout_s=_QUERY_TIMEOUT_S)
    return mirror_from_targets(targets, os.environ)


def parse_uris(output: str) -> tuple[str, ...]:
    """File names of ``apt-get --print-uris`` lines (``'uri' file size hash``), sorted."""
    names = [line.split()[1] for line in output.splitlines() if line.startswith("'")]
    return tuple(sorted(names))


def parse_depends(output: str) -> tuple[str, ...]:
    """Names of the plain dependencies in ``apt-cache depends`` output."""
    return tuple(re.findall(r"^\s*\|?Depends: ([^<\s]+)$", output, re.MULTILINE))


class GuestApt:
    """An apt of the guest's suite, private to ``folder``. One build uses it at a time (the store's lock)."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        self._folder = folder
        self.mirror = mirror
        self._one_at_a_time = asyncio.Lock()  # apt locks its own folders and fails instead of waiting

    async def update(self) -> None:
        """Fetch the package lists."""
        async with self._one_at_a_time:
            await self._update()

    async def resolve(self, packages: Sequence[str]) -> tuple[str, ...]:
        """File names (name_version_arch.deb) of the packages with all they depend on, by the lists at hand."""
        async with self._one_at_a_time:
            await self._need_lists()
            return await self._resolve(packages)

    async def depends(self, package: str) -> tuple[str, ...]:
        """Names that ``package`` itself depends on."""
        async with self._one_at_a_time:
            await self._need_lists()
            return parse_depends(await self._query("apt-cache", "depends", "--no-recommends", package))

    async def download(self, packages: Sequence[str], *, closure: bool = True) -> tuple[Path, ...]:
        """Fetch packages, with all they depend on unless ``closure`` is off; misleading lists are renewed."""
        async with self._one_at_a_time:
            await self._need_lists()
            try:
                return await self._download(packages, closure)
            except Unavailable:
                await self._update()  # the mirror has dropped a version the lists still name
                return await self._download(packages, closure)

    async def _download(self, packages: Sequence[str], closure: bool) -> tuple[Path, ...]:
        archives = self._folder / "cache" / "archives"
        command = ("install", "--yes", "--download-only", "--no-install-recommends") if closure else ("download",)
        await run("apt-get", *self._options(), "-qq", *command, *packages, cwd=archives, timeout_s=_DOWNLOAD_TIMEOUT_S)
        names = await self._resolve(packages) if closure else await self._print_uris("download", *packages)
        return tuple(archives / name for name in names)

    async def _resolve(self, packages: Sequence[str]) -> tuple[str, ...]:
        return await self._print_uris("install", "--yes", "--no-install-recommends", *packages)

    async def _print_uris(self, *command: str) -> tuple[str, ...]:
        empty = self._folder / "none"  # apt leaves out what it already has; here it has nothing
        (empty / "partial").mkdir(parents=True, exist_ok=True)
        output = await self._query(
            "apt-get", "-o", f"Dir::Cache::archives={empty}", "-qq", "--print-uris", *command, cwd=empty
        )
        return parse_uris(output)

    async def _query(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        return await run(program, *self._options(), *arguments, timeout_s=_QUERY_TIMEOUT_S, cwd=cwd)

    async def _need_lists(self) -> None:
        if not any((self._folder / "state" / "lists").glob("*_Packages*")):
            await self._update()

    async def _update(self) -> None:
        self._prepare()
        await run("apt-get", *self._options(), "-qq", "update", timeout_s=_UPDATE_TIMEOUT_S)

    def _prepare(self) -> None:
        for name in ("state/lists/partial", "cache/archives/partial", "etc"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "state" / "status").touch()
        (self._folder / "etc" / "sources.list").write_text(self.mirror.sources())

    def _options(self) -> tuple[str, ...]:
        """apt.conf(5) settings that keep this apt apart; the host's other settings (proxies, checks) hold."""
        settings = {
            "APT::Architecture": ARCHITECTURE,
            "APT::Architectures": ARCHITECTURE,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Dir::State": str(self._folder / "state"),
            "Dir::State::status": str(self._folder / "state" / "status"),
            "Dir::Cache": str(self._folder / "cache"),
            "Dir::Etc::sourcelist": str(self._folder / "etc" / "sources.list"),
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
        }
        return tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))


#: tar, not ``dpkg-deb --extract``: that one replaces the links of a merged /usr by folders.
_UNPACK = """set -o pipefail
for package in "${@:2}"; do
    dpkg-deb --fsys-tarfile "$package" | tar --extract --keep-directory-symlink --directory "$1"
done"""


async def unpack(packages: Sequence[Path], into: Path) -> None:
    """Unpack package files, in order, without running anything in them."""
    into.mkdir(parents=True, exist_ok=True)
    await run("bash", "-ec", _UNPACK, "unpack", into, *packages, timeout_s=_DOWNLOAD_TIMEOUT_S)
