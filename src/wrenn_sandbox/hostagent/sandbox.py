"""One sandbox on this host: one task, one inbox, one stack of resources.

::

    STARTING ──▶ RUNNING ◀──▶ PAUSING ──▶ PAUSED           (asked for, idle, deadline; a failure leads back)
    RESUMING ──▶    │ ▲
        │           │ └─ snapshot, fork, roll back: it stays RUNNING
        ▼           ▼
     STOPPING ──▶ STOPPED   (destroyed, idle, deadline)
     STOPPING ──▶ ERROR     (its VMM died)

The task makes the sandbox, then sleeps until its inbox or a timer has something; what takes more than an instant is an
operation, of which there is one at a time, and an end that comes meanwhile cancels it. Every way out leads through the
one stack, so that everything is released in one place. Others talk to it through ``Sandbox``, whose methods never block
on the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from uuid import UUID, uuid4

import structlog

from wrenn_sandbox.core import lifecycle
from wrenn_sandbox.core.errors import Bug, Conflict, Unavailable, WrennError, first_cause
from wrenn_sandbox.core.lifecycle import Action, State
from wrenn_sandbox.core.spec import Lifetime, TimeoutAction
from wrenn_sandbox.disk import durability
from wrenn_sandbox.hostagent import moment
from wrenn_sandbox.hostagent.builds import Claims, Kept
from wrenn_sandbox.hostagent.host import Host
from wrenn_sandbox.hostagent.inbox import Inbox, Operation, Stop
from wrenn_sandbox.hostagent.parts import Parts
from wrenn_sandbox.hostagent.phases import Stopwatch
from wrenn_sandbox.hostagent.request import Request
from wrenn_sandbox.hostagent.steps.adopt import WasPaused
from wrenn_sandbox.hostagent.steps.create import create
from wrenn_sandbox.hostagent.steps.pause import pause
from wrenn_sandbox.hostagent.steps.rollback import rollback
from wrenn_sandbox.hostagent.steps.snapshot import snapshot
from wrenn_sandbox.hostagent.threads import in_thread, to_the_end
from wrenn_sandbox.hostagent.timers import Ending, Timers
from wrenn_sandbox.vmm.driver import Machine

log = structlog.get_logger()

#: Releasing everything is bounded; what is still held then is the next agent's to sweep.
RELEASE_LIMIT_S = 30.0
#: A guest that breaks off is most often one whose VMM has died: the news of that may come so much later.
NEWS_LIMIT_S = 1.0
#: Calls and streams under way may take so long to end before a pause goes on without them.
DRAIN_LIMIT_S = 2.0
#: After a pause that failed, the timer that asked for it asks again: at first after so long, then after twice that, ...
_PAUSE_AGAIN_S, _PAUSE_AGAIN_AT_MOST_S = 5.0, 300.0
_LOOK_AGAIN_S = 30.0
#: Whoever uses a sandbox that is being taken over from an earlier agent waits so long.
TAKE_OVER_LIMIT_S = 30.0

_REASONS = {
    Ending.IDLE: "It was not used for its idle timeout.",
    Ending.DEADLINE: "Its deadline has passed.",
}

#: Makes the parts of a sandbox on a stack; it tells of every machine at once.
Maker = Callable[[Request, Host, AsyncExitStack, Stopwatch, Callable[[Machine], None]], Awaitable[Parts]]


class Sandbox:
    """A sandbox as the rest of the agent sees it. ``run`` is its task; everything else may be called at any time.

    ``build_id`` is its newest durable build, if it has one of its own.
    """

    def __init__(
        self,
        request: Request,
        host: Host,
        *,
        make: Maker = create,
        begin: State = State.STARTING,
        build_id: UUID | None = None,
    ) -> None:
        self.request = request
        self.state = begin
        self.reason, self.reason_slug = "", ""
        self.build_id = build_id
        self.created_at_unix_s = time.time()
        self.ended_at_s: float | None = None  # monotonic
        self.watch = Stopwatch()
        self.timers = Timers(request.spec.lifetime, time.monotonic())
        self.left = Claims()  # what an earlier agent's machine needs, until it is taken over
        self.failure: WrennError | None = None  # why it was never started
        self.operation: Operation | None = None  # under way
        self._host = host
        self._make = make
        self._inbox = Inbox()
        self._creating: asyncio.Timeout | None = None
        self._end: Stop | None = None
        self._paused = False  # durable: from here on it is over
        self._kept: Kept | None = None
        self._last: Operation | None = None  # not answered yet when the end came
        self._parts: Parts | None = None
        self._stack = AsyncExitStack()
        self._watchers: list[asyncio.Task[None]] = []
        self._pause_failures, self._pause_not_before_s = 0, 0.0
        self._started, self._ending, self._ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._unused = asyncio.Event()

    @classmethod
    def over(cls, request: Request, host: Host, state: State, build_id: UUID) -> Sandbox:
        """One that an earlier agent left paused: it has no task."""
        sandbox = cls(request, host, begin=state, build_id=build_id)
        for event in (sandbox._started, sandbox._ending, sandbox._ended):
            event.set()
        return sandbox

    # What others ask.

    @property
    def host_ip(self) -> str:
        """Where its ports answer on this host; empty while there is none."""
        return self._parts.link.slot.host_ip if self._parts else ""

    @property
    def claims(self) -> Claims:
        """The builds and RAM files it needs, as long as it has not ended."""
        if self._ended.is_set():
            return Claims()
        builds = {self.request.build_id} if self.request.build_id is not None else set[UUID]()
        if self.operation is not None and self.operation.action is Action.ROLLBACK:
            builds.add(self.operation.build_id)
        if (parts := self._parts) is None:
            return Claims(self.left.builds | builds, self.left.memories)
        return Claims(frozenset({*builds, *parts.ground.stands_on}), frozenset({parts.ground.memory}))

    @property
    def is_living(self) -> bool:
        """Whether it has anything on this host but builds."""
        return not self._ended.is_set()

    async def started(self) -> None:
        """Wait until it runs; raises what kept it from that."""
        await self._started.wait()
        if self.failure is not None:
            raise self.failure

    async def _taken_over(self) -> None:
        try:
            async with asyncio.timeout(TAKE_OVER_LIMIT_S):
                await self.started()
        except TimeoutError as error:
            message = "This host agent still takes the sandbox over from another; try again."
            raise Unavailable(message, slug="agent_starting", retry_after_s=5) from error

    def stop(self) -> None:
        """Begin its end. What it was doing is cancelled; ``ended`` tells when nothing is left."""
        self._stop(Stop(State.STOPPED))

    async def ended(self) -> None:
        """Wait until nothing of it is left on this host but its builds."""
        await self._ended.wait()

    def ask(self, operation: Operation) -> Operation:
        """Have it paused, kept or put back; the answer comes with the operation, or with one that is the same.

        Raises Conflict (``invalid_state``) when it cannot be, Exhausted (``sandbox_busy``).
        """
        now = self.operation
        if now is not None and (now.action, now.build_id) == (operation.action, operation.build_id):
            return now
        if self.state is not State.PAUSING:  # which may fail: then there is a turn
            lifecycle.require(self.state, operation.action)
        if self._ending.is_set():
            raise self._ended_error()
        return self._inbox.ask(operation)

    def set_lifetime(self, lifetime: Lifetime) -> None:
        """Replace both limits of a running sandbox."""
        lifecycle.require(self.state, Action.USE)
        self.timers.replace(lifetime, time.monotonic())
        self._pause_failures, self._pause_not_before_s = 0, 0.0
        self._remember_lifetime(lifetime)
        self._inbox.attend()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Parts]:
        """Use its guest: refused unless it runs, and it is not idle meanwhile.

        When the guest breaks off because the sandbox ends, the error says that and not what broke.
        """
        lifecycle.require(self.state, Action.USE)
        if not self._started.is_set():
            await self._taken_over()
            lifecycle.require(self.state, Action.USE)
        if (parts := self._parts) is None:
            raise Bug("A running sandbox has no parts.")
        self.timers.begin_use(time.monotonic())
        try:
            yield parts
        except Exception as error:
            if isinstance(first_cause(error), Unavailable) and (why := await self._broken_off(parts)) is not None:
                raise why from error
            raise
        finally:
            self.timers.end_use(time.monotonic())
            if not self.timers.uses:
                self._unused.set()

    def touch(self) -> None:
        """Count as used now; raises Conflict unless it runs."""
        lifecycle.require(self.state, Action.USE)
        self.timers.touch(time.monotonic())

    async def _broken_off(self, parts: Parts) -> Conflict | None:
        """Why a guest went away under its user; None when it was its own doing."""
        if self._parts is not parts and self.state is State.RUNNING:
            return Conflict("The sandbox was rolled back during this call.", slug="sandbox_rolled_back")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEWS_LIMIT_S):
                await self._ending.wait()
        return self._ended_error() if self._ending.is_set() else None

    def _ended_error(self) -> Conflict:
        end = self._end or Stop(self.state, self.reason_slug, self.reason)
        return Conflict(f"The sandbox ended during this call. {end.reason}".rstrip(), slug=end.slug or "sandbox_ended")

    def _stop(self, stop: Stop) -> None:
        if self._creating is not None and not self._creating.expired():
            self._creating.reschedule(asyncio.get_running_loop().time())
        self._inbox.end(stop)

    def _remember_lifetime(self, lifetime: Lifetime) -> None:
        self.request = replace(self.request, spec=replace(self.request.spec, lifetime=lifetime))
        if self._parts is not None:
            try:
                moment.note(self.request, self._parts)
            except OSError as error:
                log.warning("lifetime not written down", sandbox=str(self.request.id), error=str(error))

    # Its task.

    async def run(self) -> None:
        """Live from creation to the last release. Raises nothing: its owner has other sandboxes to look after."""
        end = Stop(State.ERROR, "internal_error", "The host agent was interrupted.")
        try:
            end = await self._live()
        except Exception as error:
            cause = first_cause(error)
            failure = _failure(cause, self.request)
            end = Stop(State.ERROR, failure.slug, failure.message)
            if not self._started.is_set():
                self.failure = failure
        finally:
            self._parts = None
            self._end = self._end or end
            self.reason, self.reason_slug = end.reason, end.slug
            self._move(end.state)
            self.ended_at_s = time.monotonic()
            self._started.set()
            self._ended.set()
            self._answer_all()
            self._host.builds.collect_behind()
            log.info("sandbox ended", sandbox=str(self.request.id), state=end.state.value, slug=end.slug)

    async def _live(self) -> Stop:
        async with asyncio.TaskGroup() as group:
            stack = self._stack
            try:
                self._parts = await self._begin(stack, partial(self._watch_machine, group))
                self._move(State.RUNNING)
                self.timers.touch(time.monotonic())
                self._started.set()
                self._end = await self._until_stopped(group)
                return self._end
            except WasPaused:
                self._paused = True
                if self.build_id is not None:
                    self._host.builds.improve_behind(self.build_id)
                return Stop(State.PAUSED)
            finally:
                self._move(State.PAUSING if self._paused else State.STOPPING)
                self._ending.set()
                self._forget_machines()
                await _release(self._stack, self.request)
        raise AssertionError("unreachable")

    async def _begin(self, stack: AsyncExitStack, started: Callable[[Machine], None]) -> Parts:
        try:
            async with asyncio.timeout(None) as self._creating:
                if self._inbox.stop is not None:  # it came before we did
                    self._creating.reschedule(asyncio.get_running_loop().time())
                parts = await self._make(self.request, self._host, stack, self.watch, started)
        except TimeoutError:
            if self._creating is None or not self._creating.expired():
                raise
            raise _never_started(self._inbox.stop or Stop(State.STOPPED)) from None
        finally:
            self._creating = None
        log.info(
            "sandbox running",
            sandbox=str(self.request.id),
            phases={phase.name: round(phase.ms, 1) for phase in self.watch.phases},
        )
        return parts

    def _watch_machine(self, group: asyncio.TaskGroup, machine: Machine) -> None:
        self._watchers.append(group.create_task(self._mourn(machine)))

    def _forget_machines(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        self._watchers = []

    async def _mourn(self, machine: Machine) -> None:
        ended = await machine.wait()
        self._stop(Stop(State.ERROR, "vmm_died", f"Its virtual machine ended: {ended.reason}"))

    async def _until_stopped(self, group: asyncio.TaskGroup) -> Stop:
        while True:
            if self._inbox.stop is not None:
                return self._inbox.stop
            now_s, unix_s = time.monotonic(), time.time()
            operation = self._inbox.next()
            if operation is None and (ending := self.timers.due(now_s, unix_s)) is not None:
                if self.timers.action(ending) is TimeoutAction.KILL:
                    return Stop(State.STOPPED, ending.value, _REASONS[ending])
                if now_s >= self._pause_not_before_s:
                    operation = Operation(Action.PAUSE, uuid4(), why=Stop(State.PAUSED, ending.value, _REASONS[ending]))
            if operation is None:
                retry_s = self._pause_not_before_s - now_s
                left_s = self.timers.sleep_s(now_s, unix_s)
                await self._inbox.news(min(retry_s, _LOOK_AGAIN_S) if left_s <= 0 < retry_s else left_s)
            elif (end := await self._carry_out(operation, group)) is not None:
                return end

    async def _carry_out(self, operation: Operation, group: asyncio.TaskGroup) -> Stop | None:
        """Do one operation, beside which only an end is heard. Returns the end, if there is one."""
        self.operation = self._last = operation
        task = group.create_task(self._answered(operation, group))
        task.add_done_callback(lambda _: self._inbox.attend())
        try:
            while not task.done() and self._inbox.stop is None:
                await self._inbox.news(None)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
            self.operation = None
        if not self._paused:
            self._last = None
            return self._inbox.stop
        stop = self._inbox.stop
        if stop is not None and stop.state is State.STOPPED:
            return stop
        return operation.why or Stop(State.PAUSED)  # it is durable: a machine that died since is no loss

    async def _answered(self, operation: Operation, group: asyncio.TaskGroup) -> None:
        try:
            lifecycle.require(self.state, operation.action)
            kept = await self._perform(operation, group)
        except asyncio.CancelledError:
            if not self._paused:
                operation.failed(self._cancelled_error())
            raise
        except Exception as error:
            cause = first_cause(error)
            failure = _failure(cause, self.request)
            log.warning(
                "operation failed", sandbox=str(self.request.id), action=operation.action.value, slug=failure.slug,
                reason=failure.message,
            )  # fmt: skip
            operation.failed(failure)
        else:
            if not self._paused:
                operation.done(kept)

    def _cancelled_error(self) -> WrennError:
        stop = self._inbox.stop or Stop(State.STOPPED)
        if stop.state is State.ERROR:
            return Conflict(f"The sandbox ended during this call. {stop.reason}", slug=stop.slug)
        return Conflict("The sandbox was destroyed during this call.", slug="sandbox_destroyed")

    async def _perform(self, operation: Operation, group: asyncio.TaskGroup) -> Kept:
        if self._parts is None:
            raise Bug("A running sandbox has no parts.")
        if operation.action is Action.PAUSE:
            return await self._pause(operation, self._parts)
        if operation.action is Action.ROLLBACK:
            return await self._roll_back(operation.build_id, group)
        holders = (str(self.request.id), *operation.holders)
        kept = await snapshot(self.request, self._parts, self._host, operation.build_id, holders)
        self.build_id = kept.build.id
        return kept

    async def _pause(self, operation: Operation, parts: Parts) -> Kept:
        self._move(State.PAUSING)

        def durable(kept: Kept) -> None:
            self._paused, self._kept, self.build_id = True, kept, kept.build.id
            self._host.builds.improve_behind(kept.build.id)

        try:
            await self._drain()
            build_id, holders = operation.build_id, operation.holders
            await pause(self.request, parts, self._host, build_id, done=durable, holders=holders)
        except Exception:
            self._pause_failures += 1
            wait_s = min(_PAUSE_AGAIN_S * 2 ** (self._pause_failures - 1), _PAUSE_AGAIN_AT_MOST_S)
            self._pause_not_before_s = time.monotonic() + wait_s
            self._move(State.RUNNING)
            raise
        if self._kept is None:
            raise Bug("A pause has ended without a build.")
        return self._kept

    async def _drain(self) -> None:
        """Nothing new is let in; what is under way has a moment to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_LIMIT_S):
                while self.timers.uses:
                    self._unused.clear()
                    await self._unused.wait()

    async def _roll_back(self, build_id: UUID, group: asyncio.TaskGroup) -> Kept:
        build = await in_thread(self._host.builds.store.get, build_id)
        request = replace(self.request, build_id=build_id, spec=replace(self.request.spec, shape=build.manifest.shape))
        stack, watch = AsyncExitStack(), Stopwatch()
        try:
            parts = await rollback(request, self._host, stack, watch, create)
            # From the hold to the swap nothing comes between: whoever ends it then offers the build that it is in.
            await to_the_end(self._host.builds.hold(str(request.id), build_id))
        except BaseException:
            await _release(stack, request)
            raise
        old, self._stack = self._stack, stack
        self._parts, self.request, self.watch, self.build_id = parts, request, watch, build_id
        self._forget_machines()
        self._watch_machine(group, parts.machine)
        await to_the_end(_release(old, request))
        return Kept(build)

    def _answer_all(self) -> None:
        operation, self._last = self._last, None
        if operation is not None and self._kept is not None and self.state is State.PAUSED:
            operation.done(self._kept)
        while (operation := operation or self._inbox.next()) is not None:
            operation.failed(self._cancelled_error() if self.state is not State.PAUSED else self._ended_error())
            operation = None

    def _move(self, state: State) -> None:
        if state is not self.state and state not in lifecycle.TRANSITIONS[self.state]:
            log.error("state out of order", sandbox=str(self.request.id), was=self.state.value, now=state.value)
        self.state = state


def parts_of(sandbox: Sandbox) -> Parts | None:
    """What it runs on, to be looked at and not to be used; None while it does not run."""
    return sandbox._parts


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


def _failure(error: BaseException, request: Request) -> WrennError:
    if isinstance(error, WrennError):
        return error
    if durability.is_full(error):
        log.error("no room for a sandbox's files", sandbox=str(request.id), error=str(error))
        return durability.disk_full()
    return _bug(error, request)


def _bug(error: BaseException, request: Request) -> Bug:
    reference = secrets.token_hex(4)
    log.error("sandbox task failed", sandbox=str(request.id), reference=reference, exc_info=error)
    return Bug(f"The host agent failed; its log has the details under reference {reference}.")
