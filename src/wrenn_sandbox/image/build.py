"""Build every guest artefact whose inputs changed, and make the set current.

::

    kernel ─▶ initramfs
       └────▶ toolbase ─▶ tools        rootfs        runtime
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wrenn_sandbox.core.artefacts import ArtefactSet
from wrenn_sandbox.core.errors import Invalid, Unavailable, first_cause
from wrenn_sandbox.image import initramfs, kernel, rootfs, runtime, tools
from wrenn_sandbox.image.catalog import Catalog
from wrenn_sandbox.image.debian import GuestApt, find_mirror
from wrenn_sandbox.image.progress import Outcome, Progress, StepReport, line_finished, line_started
from wrenn_sandbox.image.recipe import Recipe, Sources
from wrenn_sandbox.image.store import Made, Store, allocated_bytes

STEPS = ("runtime", "kernel", "initramfs", "tools", "rootfs")


@dataclass(frozen=True, slots=True)
class Options:
    """As ``build_all`` takes them."""

    force: bool = False
    refresh: bool = False
    only: str = ""
    rootfs_size_mib: int = rootfs.DEFAULT_SIZE_MIB


async def build_all(
    images: Path,
    progress: Progress,
    *,
    force: bool = False,
    refresh: bool = False,
    only: str = "",
    rootfs_size_mib: int = rootfs.DEFAULT_SIZE_MIB,
) -> ArtefactSet:
    """Bring the artefacts in ``images`` up to date and make them the current set.

    What has unchanged inputs stays, unless ``force`` or, with ``refresh``, there are newer Debian packages for it.
    ``only`` names one of STEPS: that one and what it needs; the rest of the set stays as it is.
    Safe to interrupt and repeat at any point. Raises Conflict (``image_build_running``) while another build works
    there; Unavailable (``tool_missing``, ``qemu_too_old``, ``no_debian_mirror``, ``image_build_failed``) and Denied
    (``root_required``) say what is in the way.
    """
    if only and only not in STEPS:
        raise Invalid(f"{only!r} is not one of {', '.join(STEPS)}.", slug="invalid_step")
    store = Store(images.resolve())
    with store.locked():
        apt = GuestApt(store.cache / "apt", await find_mirror())
        return await Build(store, progress, Options(force, refresh, only, rootfs_size_mib), apt).run()


class Build:
    """One run over all recipes, in a store that is locked."""

    def __init__(self, store: Store, progress: Progress, options: Options, apt: GuestApt) -> None:
        self._store = store
        self._progress = progress
        self._options = options
        self._catalog = Catalog(store.root)
        self._apt = apt

    async def run(self) -> ArtefactSet:
        """Follow all recipes that the options ask for and make the set current."""
        try:
            current: ArtefactSet | None = self._catalog.current()
        except Unavailable:
            current = None
        only = self._options.only if current is not None else ""  # a first set must be whole
        if self._options.refresh:
            await self._apt.update()
        digests: dict[str, str] = {}
        release = current.kernel_release if current else ""

        async def follow(recipe: Recipe) -> None:
            digests[recipe.name] = (await self.follow(recipe)).digest

        try:
            async with asyncio.TaskGroup() as group:
                if only in {"", "runtime"}:
                    group.create_task(follow(await runtime.recipe()))
                if only in {"", "rootfs"}:
                    group.create_task(follow(rootfs.recipe(self._apt.mirror, self._options.rootfs_size_mib)))
                if only in {"", "kernel", "initramfs", "tools"}:
                    release = await self._guest_programs(only, digests)
        except* Exception as group_error:  # the first failure is the cause; its siblings were only cancelled
            raise first_cause(group_error) from None
        artefacts = ArtefactSet(
            kernel_release=release,
            **{name: digests.get(name) or (getattr(current, name) if current else "") for name in STEPS},
        )
        if artefacts != current:
            self._catalog.set_current(artefacts)
        return artefacts

    async def _guest_programs(self, only: str, digests: dict[str, str]) -> str:
        """Kernel, and then what holds its modules; returns the kernel's release."""
        apt, sources = self._apt, Sources.of_checkout()
        made = await self.follow(kernel.recipe(apt))
        digests["kernel"] = made.digest
        folder = self._catalog.kernel(made.digest).parent
        if only in {"", "initramfs", "kernel"}:
            digests["initramfs"] = (await self.follow(initramfs.recipe(apt, sources, folder, made.digest))).digest
        if only in {"", "tools", "kernel"}:
            base = await self.follow(tools.base_recipe(apt, sources, folder, made.digest))
            path = self._store.root / "cache" / "toolbase" / base.digest
            digests["tools"] = (await self.follow(tools.recipe(sources, path, base.digest))).digest
        return made.facts["release"]

    async def follow(self, recipe: Recipe) -> Made:
        """What the recipe's inputs make: from before when they made it already, else now."""
        with self._timed(recipe.name) as finish:
            known = self._store.recall(recipe.name, recipe.key)
            if known is not None and not await self._stale(recipe, known):
                finish(Outcome.CURRENT, known)
                return known
            self._progress(line_started(recipe.name, recipe.doing))
            with self._store.scratch(recipe.name) as scratch:
                product = await recipe.make(scratch)
                size = allocated_bytes(product.folder)
                packages = await self._resolve(recipe) if recipe.packages else ()
                self._store.publish(product.folder, recipe.kind, product.digest)
            made = Made(product.digest, size, product.facts, packages)
            self._store.remember(recipe.name, recipe.key, made)
            finish(Outcome.BUILT, made)
            return made

    async def _stale(self, recipe: Recipe, known: Made) -> bool:
        if not (self._store.root / recipe.kind / known.digest).exists():
            return True
        if self._options.force and self._options.only in {"", recipe.name}:
            return True
        return self._options.refresh and bool(recipe.packages) and await self._resolve(recipe) != known.packages

    async def _resolve(self, recipe: Recipe) -> tuple[str, ...]:
        return await self._apt.resolve(recipe.packages)

    @contextmanager
    def _timed(self, name: str) -> Iterator[_Finish]:
        started = time.monotonic()
        finish = _Finish(self._progress, name, started)
        try:
            yield finish
        except BaseException:
            self._progress(line_finished(StepReport(name, Outcome.FAILED, time.monotonic() - started)))
            raise


@dataclass(frozen=True, slots=True)
class _Finish:
    """Reports the end of a step."""

    progress: Progress
    name: str
    started: float

    def __call__(self, outcome: Outcome, made: Made) -> None:
        seconds = time.monotonic() - self.started
        self.progress(line_finished(StepReport(self.name, outcome, seconds, made.digest, made.size_bytes)))
