"""One sandbox on this host: one task, one inbox, one stack of resources.

::

    STARTING ──▶ RUNNING ──▶ STOPPING ──▶ STOPPED   (destroyed, idle, deadline)
        │           │
        └───────────┴──────▶ STOPPING ──▶ ERROR     (its VMM died)

The task makes the sandbox, then sleeps until a message or a timer; every way out leads through the one stack, so that
everything is released in one place. Others talk to it through ``Sandbox``, whose methods never block on the task.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from wrenn_sandbox.core import lifecycle
from wrenn_sandbox.core.errors import Bug, Conflict, Unavailable, WrennError, first_cause
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.core.spec import Lifetime
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.phases import Stopwatch
from wrenn_sandbox.hostagent.steps.create import Parts, Request, create
from wrenn_sandbox.hostagent.timers import Ending, Timers
from wrenn_sandbox.vmm.driver import Machine

log = structlog.get_logger()

#: Releasing everything is bounded; what is still held then is the next agent's to sweep.
RELEASE_LIMIT_S = 30.0
_INBOX_SIZE = 16
#: A guest that breaks off is most often one whose VMM has died: the news of that may come so much later.
NEWS_LIMIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Stop:
    """End the sandbox. ``state`` is what it becomes; ``slug`` and ``reason`` say why, for users."""

    state: State
    slug: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LifetimeChanged:
    """The timers have other limits now: look at them again."""


_REASONS = {
    Ending.IDLE: "It was not used for its idle timeout.",
    Ending.DEADLINE: "Its deadline has passed.",
}


class Sandbox:
    """A sandbox as the rest of the agent sees it. ``run`` is its task; everything else may be called at any time."""

    def __init__(self, request: Request, host: Host) -> None:
        self.request = request
        self.state = State.STARTING
        self.reason, self.reason_slug = "", ""
        self.created_at_unix_s = time.time()
        self.ended_at_s: float | None = None  # monotonic
        self.watch = Stopwatch()
        self.timers = Timers(request.spec.lifetime, time.monotonic())
        self.failure: WrennError | None = None  # why it was never started
        self._host = host
        self._inbox: asyncio.Queue[Stop | LifetimeChanged] = asyncio.Queue(_INBOX_SIZE)
        self._creating: asyncio.Timeout | None = None
        self._end: Stop | None = None
        self._parts: Parts | None = None
        self._started, self._ending, self._ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    # What others ask.

    @property
    def host_ip(self) -> str:
        """Where its ports answer on this host; empty while there is none."""
        return self._parts.link.slot.host_ip if self._parts else ""

    async def started(self) -> None:
        """Wait until it runs; raises what kept it from that."""
        await self._started.wait()
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Begin its end. What it was doing is cancelled; ``ended`` tells when nothing is left."""
        self._post(Stop(State.STOPPED))

    async def ended(self) -> None:
        """Wait until nothing of it is left on this host."""
        await self._ended.wait()

    def set_lifetime(self, lifetime: Lifetime) -> None:
        """Replace both limits of a running sandbox."""
        lifecycle.require(self.state, Action.USE)
        self.timers.replace(lifetime, time.monotonic())
        self._post(LifetimeChanged())

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Parts]:
        """Use its guest: refused unless it runs, and it is not idle meanwhile.

        When the guest breaks off because the sandbox ends, the error says that and not what broke.
        """
        lifecycle.require(self.state, Action.USE)
        if self._parts is None:
            raise Bug("A running sandbox has no parts.")
        self.timers.begin_use(time.monotonic())
        try:
            yield self._parts
        except Exception as error:
            if isinstance(first_cause(error), Unavailable) and await self._is_ending():
                raise self._ended_error() from error
            raise
        finally:
            self.timers.end_use(time.monotonic())

    def touch(self) -> None:
        """Count as used now; raises Conflict unless it runs."""
        lifecycle.require(self.state, Action.USE)
        self.timers.touch(time.monotonic())

    async def _is_ending(self) -> bool:
        try:
            async with asyncio.timeout(NEWS_LIMIT_S):
                await self._ending.wait()
        except TimeoutError:
            return False
        return True

    def _ended_error(self) -> Conflict:
        end = self._end or Stop(self.state, self.reason_slug, self.reason)
        return Conflict(f"The sandbox ended during this call. {end.reason}".rstrip(), slug=end.slug or "sandbox_ended")

    def _post(self, message: Stop | LifetimeChanged) -> None:
        if isinstance(message, Stop) and self._creating is not None and not self._creating.expired():
            self._creating.reschedule(asyncio.get_running_loop().time())
        try:
            self._inbox.put_nowait(message)
        except asyncio.QueueFull:
            self._inbox.get_nowait()  # a full inbox holds only repetitions
            self._inbox.put_nowait(message)

    # Its task.

    async def run(self) -> None:
        """Live from creation to the last release. Raises nothing: its owner has other sandboxes to look after."""
        end = Stop(State.ERROR, "internal_error", "The host agent was interrupted.")
        try:
            end = await self._live()
        except Exception as error:
            cause = first_cause(error)
            failure = cause if isinstance(cause, WrennError) else _bug(cause, self.request)
            end = Stop(State.ERROR, failure.slug, failure.message)
            if not self._started.is_set():
                self.failure = failure
        finally:
            self._parts = None
            self.reason, self.reason_slug = end.reason, end.slug
            self._move(end.state)
            self.ended_at_s = time.monotonic()
            self._started.set()
            self._ended.set()
            log.info("sandbox ended", sandbox=str(self.request.id), state=end.state.value, slug=end.slug)

    async def _live(self) -> Stop:
        async with asyncio.TaskGroup() as group:
            stack = AsyncExitStack()
            watchers: list[asyncio.Task[None]] = []
            try:
                self._parts = await self._create(stack, lambda m: watchers.append(group.create_task(self._mourn(m))))
                self._move(State.RUNNING)
                self.timers.touch(time.monotonic())
                self._started.set()
                self._end = await self._until_stopped()
                return self._end
            finally:
                self._move(State.STOPPING)
                self._ending.set()
                for watcher in watchers:
                    watcher.cancel()
                await _release(stack, self.request)
        raise AssertionError("unreachable")

    async def _create(self, stack: AsyncExitStack, started: Callable[[Machine], None]) -> Parts:
        try:
            async with asyncio.timeout(None) as self._creating:
                parts = await create(self.request, self._host, stack, self.watch, started)
        except TimeoutError:
            if self._creating is None or not self._creating.expired():
                raise
            raise _never_started(self._first_stop()) from None
        finally:
            self._creating = None
        log.info(
            "sandbox running",
            sandbox=str(self.request.id),
            phases={phase.name: round(phase.ms, 1) for phase in self.watch.phases},
        )
        return parts

    async def _mourn(self, machine: Machine) -> None:
        ended = await machine.wait()
        self._post(Stop(State.ERROR, "vmm_died", f"Its virtual machine ended: {ended.reason}"))

    async def _until_stopped(self) -> Stop:
        while True:
            now_s, unix_s = time.monotonic(), time.time()
            if (ending := self.timers.due(now_s, unix_s)) is not None:
                return Stop(State.STOPPED, ending.value, _REASONS[ending])
            try:
                async with asyncio.timeout(self.timers.sleep_s(now_s, unix_s)):
                    message = await self._inbox.get()
            except TimeoutError:
                continue
            if isinstance(message, Stop):
                return message

    def _first_stop(self) -> Stop:
        while not self._inbox.empty():
            message = self._inbox.get_nowait()
            if isinstance(message, Stop):
                return message
        return Stop(State.STOPPED)

    def _move(self, state: State) -> None:
        if state not in lifecycle.TRANSITIONS[self.state]:
            log.error("state out of order", sandbox=str(self.request.id), was=self.state.value, now=state.value)
        self.state = state


async def _release(stack: AsyncExitStack, request: Request) -> None:
    """Let go of everything, within a bound and whatever fails on the way."""
    try:
        async with asyncio.timeout(RELEASE_LIMIT_S):
            await stack.aclose()
    except Exception:
        log.exception("sandbox not wholly released", sandbox=str(request.id))


def _never_started(stop: Stop) -> WrennError:
    if stop.state is State.ERROR:
        return Unavailable(f"The sandbox did not start. {stop.reason}", slug=stop.slug)
    return Conflict("The sandbox was destroyed while it was being made.", slug="sandbox_destroyed")


def _bug(error: BaseException, request: Request) -> Bug:
    reference = secrets.token_hex(4)
    log.error("sandbox task failed", sandbox=str(request.id), reference=reference, exc_info=error)
    return Bug(f"The host agent failed; its log has the details under reference {reference}.")
