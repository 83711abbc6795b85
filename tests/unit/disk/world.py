"""A small store with real files: guests of 1 MiB, a base template, and builds whose memory the tests know."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from wrenn_sandbox.core.artefacts import ArtefactSet, Manifest, Platform
from wrenn_sandbox.core.extents import PAGE, Extent, Extents
from wrenn_sandbox.core.spec import Shape
from wrenn_sandbox.disk import build as builds
from wrenn_sandbox.disk import overlay
from wrenn_sandbox.disk.build import Build
from wrenn_sandbox.disk.draft import Draft
from wrenn_sandbox.disk.store import BuildStore
from wrenn_sandbox.image.catalog import Catalog

ARTEFACTS = ArtefactSet("runtime", "kernel", "6.1", "initramfs", "tools", "rootfs")
PLATFORM = Platform("qemu", "tcg", "microvm", "qemu64", "quiet")
SIZE = 1 << 20
PAGES = SIZE // PAGE
Content = Mapping[int, bytes]  # page number -> its 4096 bytes


def page(number: int) -> bytes:
    """A page of its own."""
    return random.Random(number).randbytes(PAGE)


@dataclass
class World:
    """A data directory, an images directory with one base template, and what the memory of each build must be."""

    root: Path
    write_disk: Callable[[Path, Build], None] = lambda overlay, parent: None  # what a guest writes to its disk
    memories: dict[UUID, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.catalog = Catalog(self.root / "images")
        rootfs = self.catalog.rootfs(ARTEFACTS.rootfs)
        rootfs.parent.mkdir(parents=True)
        rootfs.write_bytes(bytes(range(256)) * (SIZE // 256))
        self.base = self.add_base("base-key")
        self.store = BuildStore(self.root / "data", self.catalog)

    @property
    def builds(self) -> Path:
        """Where builds are."""
        return self.root / "data" / "builds"

    def reopened(self) -> BuildStore:
        """The store as the next agent finds it."""
        return BuildStore(self.root / "data", self.catalog)

    def add_base(self, key: str, content: Content | None = None, prefix: str = "") -> UUID:
        """A base template with some pages."""
        base, directory = uuid4(), self.catalog.bases / key
        directory.mkdir(parents=True)
        memory = bytearray(SIZE)
        for number, data in (content or {n: page(n) for n in range(0, PAGES, 3)}).items():
            memory[number * PAGE : (number + 1) * PAGE] = data
        with (directory / "memory").open("wb") as file:
            file.truncate(SIZE)
            for number in range(PAGES):
                if any(data := memory[number * PAGE : (number + 1) * PAGE]):
                    file.seek(number * PAGE)
                    file.write(data)
        (directory / "state").write_bytes(b"base state")
        overlay.create(directory / "disk.qcow2", self.catalog.rootfs(ARTEFACTS.rootfs), "raw")
        manifest = self.manifest(base)
        manifest = Manifest.from_json(manifest.to_json() | {"build_id": f"{prefix}{base}"})
        (directory / "manifest.json").write_bytes(builds.encoded(manifest))
        self.memories[base] = bytes(memory)
        return base

    def manifest(self, build_id: UUID, parent: Build | None = None, created_at_unix_s: float = 0.0) -> Manifest:
        """Of a build above ``parent``, or of a base template."""
        made = Manifest(str(build_id), "base", Shape(1, SIZE >> 20), ARTEFACTS, PLATFORM, created_at_unix_s)
        if parent is None:
            return made
        more = {
            "memory_header": builds.HEADER,
            "parent": str(parent.id),
            "disk_chain": [str(parent.id), *parent.manifest.disk_chain],
        }
        return Manifest.from_json(made.to_json() | more)

    def fill(self, draft: Draft, parent: Build, content: Content) -> None:
        """Put a build above ``parent`` into a draft: ``content`` is what changed; a page of zeros counts as one."""
        extents = Extents.of(Extent(n, 1, not any(content[n])) for n in sorted(content))
        draft.memory.write_bytes(b"".join(content[n] for n in sorted(content) if any(content[n])))
        draft.write_header(parent.header.extended(draft.build_id, extents))
        draft.state.write_bytes(b"state of " + draft.build_id.bytes)
        running = self.builds.parent / f"run-{draft.build_id}.qcow2"
        try:
            overlay.create(running, parent.disk, "qcow2")
            self.write_disk(running, parent)
            draft.take_disk(running)
        finally:
            running.unlink(missing_ok=True)
        memory = bytearray(self.memories[parent.id])
        for number, data in content.items():
            memory[number * PAGE : (number + 1) * PAGE] = data
        self.memories[draft.build_id] = bytes(memory)

    def capture(self, parent_id: UUID, content: Content, build_id: UUID | None = None) -> Build:
        """A published build above ``parent_id``."""
        with self.store.pinned(parent_id) as parent, self.store.draft(build_id or uuid4(), parent_id) as draft:
            self.fill(draft, parent, content)
            order = float(len(self.memories))
            return self.store.publish(draft, self.manifest(draft.build_id, parent, order))

    def chain(self, length: int) -> list[Build]:
        """Builds above each other, in which pages change, repeat and become zero."""
        found: list[Build] = []
        for number in range(length):
            parent = found[-1].id if found else self.base
            changed = {n: page(1000 * number + n) for n in range(number, PAGES, 7)}
            found.append(self.capture(parent, {**changed, 0: page(number), 3 * number: bytes(PAGE)}))
        return found

    def memory(self, build: Build) -> bytes:
        """What its source gives."""
        with build.source() as source:
            return source.read(0, SIZE)

    def restored(self, build: Build) -> bytes:
        """What a machine restored by its plan would have."""
        flat, patches = build.restore_plan()
        memory = bytearray(flat.read_bytes())
        for patch in patches:
            data = bytes(patch.length)
            if patch.source is not None:
                with patch.source.open("rb") as file:
                    file.seek(patch.offset)
                    data = file.read(patch.length)
            assert len(data) == patch.length
            memory[patch.address : patch.address + patch.length] = data
        return bytes(memory)

    def names(self) -> set[str]:
        """What is in the folder of builds."""
        return {path.name for path in self.builds.iterdir()}
