"""A recipe: what one artefact is made from, and how. The build decides whether to follow it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.store import DIGEST_DIGITS

#: Owners, times and such that would differ between two equal builds are set to this moment (Unix seconds).
EPOCH_S = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Product:
    """What following a recipe gave: the folder to publish, its content hash, and facts other recipes use."""

    folder: Path
    digest: str
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """``key`` names the inputs, ``packages`` the Debian packages whose newer versions a refresh looks for.

    ``make`` gets an empty scratch folder on the store's file system and may leave anything in it.
    """

    name: str
    kind: str
    doing: str
    key: str
    packages: tuple[str, ...]
    make: Callable[[Path], Awaitable[Product]]


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts of the repository that go into guest artefacts."""

    guest: Path  # init scripts and the exec shim
    lock: Path  # the guest's Python requirements, hashed
    package: Path  # the wrenn_sandbox package

    @classmethod
    def of_checkout(cls) -> Sources:
        """Those of the checkout this code runs from; raises Unavailable (``sources_missing``) outside one."""
        package = Path(__file__).resolve().parents[1]
        root = package.parents[1]
        sources = cls(guest=root / "guest", lock=root / "requirements" / "guest.txt", package=package)
        if not (sources.guest.is_dir() and sources.lock.is_file()):
            raise Unavailable(
                f"{root} is not a checkout of the repository: build guest artefacts from one (`make image`).",
                slug="sources_missing",
            )
        return sources


def code(module: str) -> str:
    """What a recipe's module does, as an input: its syntax without comments, docstrings and layout."""
    tree = ast.parse(Path(module).read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.dump(tree)


def fingerprint(*parts: str | bytes | Path | Iterable[Path]) -> str:
    """One name for all inputs together: texts as they are, paths by content (and, within a list, by file name)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str | bytes):
            _add(digest, part.encode() if isinstance(part, str) else part)
        elif isinstance(part, Path):
            _add(digest, part.read_bytes())
        else:
            for path in part:
                _add(digest, str(path).encode())
                _add(digest, path.read_bytes())
    return digest.hexdigest()[:DIGEST_DIGITS]


def _add(digest: hashlib._Hash, data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "big"))
    digest.update(data)
