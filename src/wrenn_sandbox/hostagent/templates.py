"""Base templates: booted once for each shape, then restored for every sandbox of that shape.

::

    images/bases/
      <key>/           manifest.json disk.qcow2 memory state last-used
        needed-by/     a file for each agent whose builds stand on it: the agent's run directory
      .<key>.lock      held by whoever bakes it: two agents may share an images directory
      .<key>.new/      being baked; what is found there without the lock being held is rubbish

The key is a hash of everything that the memory depends on: artefacts, platform, shape, format. A bake belongs to the
agent, not to the caller that first needed it: all callers wait for the one, and it goes on when they leave.

Agents that share an images directory know nothing of each other's builds. So each says in every base whether it needs
it, and removes none that another one needs: be that not running, as long as its data directory is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog

from wrenn_sandbox.core.artefacts import MANIFEST_VERSION, ArtefactSet, Manifest, Platform
from wrenn_sandbox.core.errors import Bug, Unavailable, WrennError, first_cause
from wrenn_sandbox.core.spec import DEFAULT_SHAPE, Shape
from wrenn_sandbox.disk import durability
from wrenn_sandbox.hostagent.host import Base
from wrenn_sandbox.hostagent.steps.bake import Kitchen, Order, bake
from wrenn_sandbox.hostagent.threads import in_thread

log = structlog.get_logger()

TEMPLATE_NAME = "base"
NEEDED_BY = "needed-by"
#: What the guest's kernel is told beyond what its machine needs. An idle guest should sleep: a socket table of the size
#: that a sandbox needs is read sixteen times faster, and nobody is there to hear the lock-up watchdog.
KERNEL_CMDLINE = "thash_entries=256 nowatchdog"
FAILURE_REMEMBERED_S = 30.0
UNUSED_AFTER_S = 7 * 24 * 3600.0
_TOUCH_EVERY_S = 60.0
_CLEAN_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Status:
    """How one base template is; ``status`` is preparing, ready or failed."""

    shape: Shape
    status: str
    detail: str = ""


@dataclass(slots=True)
class _Bake:
    """One bake under way."""

    shape: Shape
    done: asyncio.Event = field(default_factory=asyncio.Event)
    base: Base | None = None
    error: WrennError | None = None
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    shape: Shape
    error: WrennError
    until_s: float  # monotonic


def template_key(artefacts: ArtefactSet, platform: Platform, shape: Shape) -> str:
    """32 hex digits that change with everything a memory snapshot depends on."""
    parts = {
        "artefacts": asdict(artefacts),
        "platform": asdict(platform),
        "shape": asdict(shape),
        "v": MANIFEST_VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Templates:
    """The base templates of this host's driver; bakes run in ``group``, and what is ``needed`` stays (it blocks)."""

    def __init__(
        self, kitchen: Kitchen, group: asyncio.TaskGroup, needed: Callable[[], frozenset[str]] = frozenset
    ) -> None:
        self._kitchen = kitchen
        self._group = group
        self._needed = needed
        self._bakes: dict[str, _Bake] = {}
        self._failures: dict[str, _Failure] = {}
        self._loaded: dict[str, Base] = {}
        self._touched: dict[str, float] = {}

    async def ready(self, shape: Shape, tell: Callable[[str], None]) -> Base:
        """The base for ``shape``, baked first if need be. Raises Unavailable while a failure is remembered."""
        artefacts, platform = self._kitchen.catalog.current(), self._kitchen.driver.platform(KERNEL_CMDLINE)
        key = template_key(artefacts, platform, shape)
        base = self._load(key)
        if base is None:
            tell(f"preparing template {TEMPLATE_NAME} for {shape}")
            base = await self._baked(Order(key, artefacts, platform, shape))
            tell("")
        self._touch(key, base)
        return base

    async def keep(self, default: Shape = DEFAULT_SHAPE) -> None:
        """Bake the default shape now and remove what nobody uses, for as long as the agent runs."""
        try:
            await self.ready(default, lambda _: None)
        except WrennError as error:
            log.error("default template not ready", slug=error.slug, error=error.message)
        while True:
            try:
                await in_thread(self._mark_and_remove, default)
            except (WrennError, OSError) as error:
                log.warning("could not clear up templates", error=str(error))
            await asyncio.sleep(_CLEAN_EVERY_S)

    async def close(self) -> None:
        """Cancel the bakes under way and wait until nothing of them is left."""
        tasks = [under_way.task for under_way in self._bakes.values() if under_way.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def statuses(self) -> Sequence[Status]:
        """Every base known to this agent, by shape."""
        found = {base.manifest.shape: Status(base.manifest.shape, "ready") for base in self._loaded.values()}
        for failure in self._failures.values():
            found.setdefault(failure.shape, Status(failure.shape, "failed", failure.error.message))
        for bake_ in self._bakes.values():
            found[bake_.shape] = Status(bake_.shape, "preparing")
        return sorted(found.values(), key=lambda s: (s.shape.vcpus, s.shape.memory_mib))

    def _load(self, key: str) -> Base | None:
        path = self._kitchen.catalog.bases / key / "manifest.json"
        if not path.exists():
            self._loaded.pop(key, None)
            return None
        if key not in self._loaded:
            self._loaded[key] = load_base(path.parent)
        return self._loaded[key]

    async def _baked(self, order: Order) -> Base:
        failure = self._failures.get(order.key)
        if failure is not None and (left := failure.until_s - time.monotonic()) > 0:
            raise Unavailable(
                f"The template for {order.shape} could not be prepared a moment ago: {failure.error.message}",
                slug=failure.error.slug,
                retry_after_s=max(1, round(left)),
            )
        if order.key not in self._bakes:
            begun = self._bakes[order.key] = _Bake(order.shape)
            begun.task = self._group.create_task(self._bake(order, begun))
        under_way = self._bakes[order.key]
        await under_way.done.wait()
        if under_way.base is None:
            raise under_way.error or Bug("The template was not prepared.")
        return under_way.base

    async def _bake(self, order: Order, under_way: _Bake) -> None:
        began = time.monotonic()
        try:
            under_way.base = load_base(await bake(order, self._kitchen))
            self._loaded[order.key] = under_way.base
            self._failures.pop(order.key, None)
            log.info("template ready", shape=str(order.shape), seconds=round(time.monotonic() - began, 1))
        except asyncio.CancelledError:
            under_way.error = Unavailable("This host agent is stopping; try another host.", slug="agent_stopping")
            raise
        except Exception as error:
            cause = first_cause(error)
            if not isinstance(cause, WrennError):
                log.error("template bake failed", shape=str(order.shape), exc_info=error)
                cause = Bug(f"The template could not be prepared ({type(cause).__name__}); the agent's log says more.")
            under_way.error = cause
            until_s = time.monotonic() + FAILURE_REMEMBERED_S
            self._failures[order.key] = _Failure(order.shape, cause, until_s)
            log.error("template not ready", shape=str(order.shape), slug=cause.slug, error=cause.message)
        finally:
            del self._bakes[order.key]
            under_way.done.set()

    def _touch(self, key: str, base: Base) -> None:
        now_s = time.monotonic()
        if now_s - self._touched.get(key, -_TOUCH_EVERY_S) >= _TOUCH_EVERY_S:
            self._touched[key] = now_s
            (base.directory / "last-used").touch()

    def _mark_and_remove(self, default: Shape) -> None:
        bases, needed = self._kitchen.catalog.bases, self._needed()
        mark_needed(bases, needed, self._kitchen.run_root)
        artefacts, platform = self._kitchen.catalog.current(), self._kitchen.driver.platform(KERNEL_CMDLINE)
        names = unused(bases, keep=template_key(artefacts, platform, default), now_unix_s=time.time())
        for name in names:
            if name in needed or needed_elsewhere(bases / name, self._kitchen.run_root):
                continue
            log.info("removing an unused template", key=name)
            (bases / name).rename(bases / f".{name}.old")
        for rubbish in bases.glob(".*.old"):  # also what an agent that died meanwhile left
            shutil.rmtree(rubbish, ignore_errors=True)


def load_base(directory: Path) -> Base:
    """Read a baked base's manifest; raises Bug when it is not one."""
    try:
        manifest = Manifest.from_json(json.loads((directory / "manifest.json").read_text()))
        return Base(directory, manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Bug(
            f"The template in {directory} cannot be read: remove that directory.", slug="template_broken"
        ) from error


def unused(bases: Path, *, keep: str, now_unix_s: float) -> Sequence[str]:
    """Names of bases that no sandbox was made from for a week, but for ``keep``."""
    if not bases.is_dir():
        return []
    found = []
    for path in bases.iterdir():
        if path.name == keep or path.name.startswith(".") or not path.is_dir():
            continue
        stamp = path / "last-used"
        last_s = stamp.stat().st_mtime if stamp.exists() else path.stat().st_mtime
        if now_unix_s - last_s > UNUSED_AFTER_S:
            found.append(path.name)
    return found


def mark_needed(bases: Path, needed: Collection[str], run_root: Path) -> None:
    """Say in every base whether the agent of ``run_root`` needs it. Raises OSError."""
    mark = _mark_of(run_root)
    for base in bases.iterdir() if bases.is_dir() else ():
        if base.name.startswith(".") or not base.is_dir():
            continue
        path = base / NEEDED_BY / mark
        if base.name not in needed:
            path.unlink(missing_ok=True)
        elif not path.exists():
            path.parent.mkdir(exist_ok=True)
            durability.write(path, str(run_root.resolve()).encode())


def needed_elsewhere(base: Path, run_root: Path) -> bool:
    """Whether an agent other than that of ``run_root``, whose data directory is still there, needs a base.

    Raises OSError when that cannot be found out.
    """
    if not (base / NEEDED_BY).is_dir():
        return False
    marks = [path for path in (base / NEEDED_BY).iterdir() if not path.name.startswith(".")]
    return any(Path(path.read_text()).is_dir() for path in marks if path.name != _mark_of(run_root))


def _mark_of(run_root: Path) -> str:
    return hashlib.sha256(str(run_root.resolve()).encode()).hexdigest()[:32]
