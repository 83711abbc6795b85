"""The build store as the agent uses it: its blocking calls in threads, and the work on builds that nobody waits for.

::

    a build is made ──▶ materialise (it will be cloned, or much of it changed) ──▶ flatten (its chain is long) ─┐
    a sandbox or template is gone ─────────────────────────────────────────────────────────────────────────────▶ collect

The work behind is one task that does one thing at a time: it must never be in the way of a restore. What it could not
do is in the log; every build is as good without it, only slower to restore.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import structlog

from wrenn_sandbox.core.artefacts import Manifest
from wrenn_sandbox.core.errors import Conflict, NotFound, WrennError
from wrenn_sandbox.core.ids import TemplateId
from wrenn_sandbox.disk.build import Build
from wrenn_sandbox.disk.draft import Draft
from wrenn_sandbox.disk.store import BuildStore
from wrenn_sandbox.hostagent.threads import in_thread, threaded, to_the_end
from wrenn_sandbox.vmm.driver import Driver

log = structlog.get_logger()

_MIB = 1 << 20
#: Above this, what differs from the nearest flat RAM file is laid flat behind a pause.
PAUSE_FLAT_BYTES = 64 * _MIB
#: Above this, it is laid flat before a fork, so that its children share it.
FORK_FLAT_BYTES = 16 * _MIB


@dataclass(frozen=True, slots=True)
class Claims:
    """What running sandboxes need: the builds they stand on, and the RAM files they have mapped."""

    builds: frozenset[UUID] = frozenset()
    memories: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True)
class Kept:
    """A durable build that was just made. Milliseconds: the machine stood still; all bytes were written; on disk."""

    build: Build
    stopped_ms: float = 0.0
    captured_ms: float = 0.0
    durable_ms: float = 0.0


class Builds:
    """The builds of this host. ``claims`` says what running sandboxes need; its owner sets it."""

    def __init__(self, store: BuildStore, driver: Driver) -> None:
        self.store = store
        self.claims: Callable[[], Claims] = Claims
        self._driver = driver
        self._flat_above: dict[UUID, int] = {}  # what is to be done behind, and from how many changed bytes on
        self._collect = False
        self._work = asyncio.Event()
        self._flat_turn = asyncio.Lock()  # of many clones at once the first lays flat, and no thread waits for it

    async def find(self, build_id: UUID) -> Build | None:
        """The build, if there is one."""
        try:
            return await in_thread(self.store.get, build_id)
        except NotFound:
            return None

    @asynccontextmanager
    async def pinned(self, build_id: UUID) -> AsyncIterator[Build]:
        """The build, which can run here, with all its files in their places within the context.

        Raises NotFound (``build_not_found``), Conflict (``build_incompatible``).
        """
        async with threaded(self.store.pinned(build_id)) as build:
            yield await in_thread(self._runnable, build)

    def _runnable(self, build: Build) -> Build:
        platform = self._driver.platform(build.manifest.platform.kernel_cmdline)
        self.store.require_runnable(build, platform, self._driver.tsc_khz())
        return build

    @asynccontextmanager
    async def draft(self, build_id: UUID, parent: UUID) -> AsyncIterator[Draft]:
        """A build in the making, which was not there before. What was not published is gone afterwards.

        Raises Conflict (``build_in_progress``, ``build_exists``), Exhausted (``host_disk_full``).
        """
        await self._require_new(build_id)
        async with threaded(self.store.draft(build_id, parent)) as draft:
            yield draft

    async def _require_new(self, build_id: UUID) -> None:
        """A leftover that nobody holds is cleared away: its disk layer may have been written since."""
        if await self.find(build_id) is None:
            return
        await self.collect()
        if await self.find(build_id) is not None:
            raise Conflict(f"There is a build {build_id} already: choose another id.", slug="build_exists")

    async def keep(self, draft: Draft, manifest: Manifest, holders: Sequence[str]) -> Build:
        """Make the draft durable and let ``holders`` keep it. Raises with no build and the holds as they were."""
        return await to_the_end(in_thread(self._keep, draft, manifest, holders))

    def _keep(self, draft: Draft, manifest: Manifest, holders: Sequence[str]) -> Build:
        before = {holder: self.store.held_by(holder) for holder in holders}
        build = self.store.publish(draft, manifest)
        try:
            for holder in holders:
                self.store.hold(holder, build.id)
        except BaseException:
            for holder in holders:
                self._put_back(holder, before.get(holder))
            raise
        return build

    def _put_back(self, holder: str, build_id: UUID | None) -> None:
        try:
            self.store.release(holder) if build_id is None else self.store.hold(holder, build_id)
        except WrennError as error:
            log.error("a hold could not be put back", holder=holder, error=error.message)

    async def hold(self, holder: str, build_id: UUID) -> None:
        """Let ``holder`` keep this build instead of what it kept."""
        await in_thread(self.store.hold, holder, build_id)
        self.collect_behind()

    async def release(self, holder: str) -> None:
        """Let ``holder`` keep nothing."""
        await in_thread(self.store.release, holder)
        self.collect_behind()

    async def held(self) -> Mapping[str, UUID]:
        """The build of every holder."""
        return await in_thread(self.store.held)

    async def collect(self, claims: Claims | None = None) -> None:
        """Remove now what nobody needs; failures are in the log. ``claims`` instead of what running sandboxes say."""
        claims = claims or self.claims()
        try:
            gone = await in_thread(self.store.collect, claims.builds, claims.memories)
        except Exception as error:  # beside this task run those of sandboxes, which its end would end
            log.error("builds not collected", error=str(error), exc_info=not _is_expected(error))
            return
        if gone:
            log.info("builds removed", builds=[str(build_id) for build_id in gone])

    async def flat_for_clones(self, build_id: UUID) -> None:
        """Lay the memory flat when much of it changed, so that all clones share it. Raises Exhausted."""
        async with self._flat_turn:
            await in_thread(self._lay_flat, build_id, FORK_FLAT_BYTES)

    def improve_behind(self, build_id: UUID, *, cloned: bool = False) -> None:
        """Make restores of a new build fast, soon."""
        above = 0 if cloned else PAUSE_FLAT_BYTES
        self._flat_above[build_id] = min(above, self._flat_above.get(build_id, above))
        self._work.set()

    def collect_behind(self) -> None:
        """Remove what nobody needs, soon."""
        self._collect = True
        self._work.set()

    async def work(self) -> None:
        """Do what is to be done behind, for as long as the agent runs."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._flat_above:
                build_id, above = self._flat_above.popitem()
                await self._improve(build_id, above)
            if self._collect:
                self._collect = False
                await self.collect()

    async def _improve(self, build_id: UUID, above: int) -> None:
        try:
            await in_thread(self._lay_flat, build_id, above)
            if await in_thread(self.store.flatten, build_id):
                log.info("build flattened", build=str(build_id))
                self._collect = True
        except NotFound:
            return  # removed meanwhile
        except Exception as error:
            log.warning("build not improved", build=str(build_id), error=str(error), exc_info=not _is_expected(error))

    def _lay_flat(self, build_id: UUID, above: int) -> None:
        with self.store.pinned(build_id) as build:
            _, patches = build.restore_plan()
        if sum(patch.length for patch in patches) > above:
            self.store.materialise(build_id)


async def improve_held_behind(builds: Builds) -> None:
    """Have everything that is held improved: an agent that ended had perhaps not come to it."""
    for holder, build_id in (await builds.held()).items():
        builds.improve_behind(build_id, cloned=holder.startswith(f"{TemplateId.prefix}-"))


def _is_expected(error: Exception) -> bool:
    return isinstance(error, (WrennError, OSError))
