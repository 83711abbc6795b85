"""POST /init: what the host tells a guest, and what a guest must do after every restore before it is used.

::

    parse ──▶ token rules ──▶ entropy ──▶ identity ──▶ clock ──▶ port subsystem ──▶ data ──▶ 204
      400        401           └────────────── a failure: 5xx, and nothing of the data is set ─┘

The timestamp orders the requests of one sandbox: of two, the later one's data stay, whatever their order of arrival.
It is never taken for the time of day. A request that names another sandbox begins a new life and is not ordered
against the one before.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from wrenn_sandbox.core.errors import Invalid, Unavailable
from wrenn_sandbox.envd import auth, clock, entropy, identity
from wrenn_sandbox.envd.context import GuestContext

MAX_BODY_BYTES = 1 << 20

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class InitRequest:
    """The body of /init. None means that the request says nothing about it; ``timestamp_ns`` is unix time."""

    envs: dict[str, str] | None = None
    access_token: str = field(default="", repr=False)
    timestamp_ns: int | None = None
    default_user: str | None = None
    default_workdir: str | None = None
    sandbox_id: str = ""
    template_id: str = ""
    machine_id: str = ""
    hostname: str = ""
    entropy: bytes | None = field(default=None, repr=False)
    step_clock: bool = True


class Starts(Protocol):
    """What /init starts when all else is done: the port subsystem."""

    async def start(self) -> None:
        """No-op when running."""


@dataclass(frozen=True, slots=True)
class Duties:
    """What a restore demands of the machine itself; a stand-in does nothing outside a guest."""

    reseed: Callable[[bytes], None] = entropy.reseed
    write_files: Callable[[str, str], None] = identity.write_files
    set_machine_id: Callable[[str], object] = identity.set_machine_id
    set_hostname: Callable[[str], None] = identity.set_hostname
    step_clock: Callable[[], float] = clock.step


#: For envd outside a guest: the host's machine is not touched.
NO_DUTIES = Duties(
    reseed=lambda _: None,
    write_files=lambda *_: None,
    set_machine_id=lambda _: None,
    set_hostname=lambda _: None,
    step_clock=lambda: 0.0,
)


class Initializer:
    """Does /init, one request at a time."""

    def __init__(self, context: GuestContext, ports: Starts, duties: Duties) -> None:
        self._context = context
        self._ports = ports
        self._duties = duties
        self._lock = asyncio.Lock()
        self._last_ns: int | None = None

    async def handle(self, body: bytes, offered: bytes) -> None:
        """Do what the request says; ``offered`` is its X-Access-Token header. Raises WrennError and sets nothing."""
        request = parse(body)
        async with self._lock:
            auth.check_init(self._context.access_token or "", request.access_token, offered)
            self._do_duties(request)
            await self._ports.start()
            if self._is_news(request):
                self._apply(request)

    def forget(self) -> None:
        """Be as after boot: no token, no order. Called once, when the self-exercise at start-up is over."""
        self._last_ns = None
        self._context.access_token = None
        self._context.envs = {}

    def _do_duties(self, request: InitRequest) -> None:
        try:
            if request.entropy is not None:
                self._duties.reseed(request.entropy)
            if request.machine_id:
                self._duties.set_machine_id(request.machine_id)
            if request.hostname:
                self._duties.set_hostname(request.hostname)
            if request.sandbox_id:
                self._duties.write_files(request.sandbox_id, request.template_id)
            if request.step_clock and (moved_s := self._duties.step_clock()):
                self._context.log.info("clock stepped by %.3f s", moved_s)
        except OSError as error:
            self._context.log.error("after-restore duty failed: %s", error)
            raise Unavailable(f"The guest could not be made ready: {error}", slug="init_failed") from error

    def _is_news(self, request: InitRequest) -> bool:
        if request.timestamp_ns is None or self._last_ns is None:
            return True
        another = bool(request.sandbox_id) and request.sandbox_id != self._context.sandbox_id
        return another or request.timestamp_ns > self._last_ns

    def _apply(self, request: InitRequest) -> None:
        context = self._context
        self._last_ns = request.timestamp_ns if request.timestamp_ns is not None else self._last_ns
        context.sandbox_id = request.sandbox_id or context.sandbox_id
        context.template_id = request.template_id or context.template_id
        if request.envs is not None or request.sandbox_id:
            envs = context.envs if request.envs is None else request.envs
            context.envs = envs | identity.environment(context.sandbox_id, context.template_id)
        if request.default_user:
            context.default_user = request.default_user
        if request.default_workdir is not None:
            context.default_workdir = request.default_workdir
        if request.access_token:
            context.access_token = request.access_token


def parse(body: bytes) -> InitRequest:
    """Read a body; raises Invalid. An empty one, or ``{}``, asks for no more than what every /init does.

    Any other must bring the host's entropy, unless it says ``"reseed": false``, which exists so that a test can show
    what the reseed is for; ``"clockStep": false`` likewise.
    """
    if not body.strip():
        return InitRequest()
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise Invalid(f"The body of /init is not JSON: {error}", slug="invalid_json") from error
    if not isinstance(fields, dict):
        raise Invalid("The body of /init must be a JSON object.", slug="invalid_json")
    reseed = bool(fields) and fields.get("reseed") is not False
    request = InitRequest(
        envs=_envs(fields.get("envVars")),
        access_token=_text(fields, "accessToken") or "",
        timestamp_ns=_timestamp_ns(fields.get("timestamp")),
        default_user=_text(fields, "defaultUser"),
        default_workdir=_text(fields, "defaultWorkdir"),
        sandbox_id=_line(fields, "sandboxId"),
        template_id=_line(fields, "templateId"),
        machine_id=_line(fields, "machineId"),
        hostname=_line(fields, "hostname"),
        entropy=_entropy(_text(fields, "entropy") or "") if reseed else None,
        step_clock=fields.get("clockStep") is not False,
    )
    if request.machine_id:
        identity.check_machine_id(request.machine_id)
    if request.hostname:
        identity.check_hostname(request.hostname)
    return request


def _text(fields: dict[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is None or (isinstance(value, str) and "\0" not in value):
        return value
    raise Invalid(f"{name} must be a string without NUL.", slug="invalid_init")


def _line(fields: dict[str, object], name: str) -> str:
    value = _text(fields, name) or ""
    if not value.isprintable() or len(value) > 256:
        raise Invalid(f"{name} must be one line of at most 256 characters.", slug="invalid_init")
    return value


def _envs(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Invalid("envVars must be an object of strings.", slug="invalid_envs")
    for name, text in value.items():
        if not isinstance(text, str) or not name or "=" in name or "\0" in name or "\0" in text:
            raise Invalid(f"envVars: {name!r} is not a variable that a process can have.", slug="invalid_envs")
    return value


def _entropy(text: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("entropy must be base64.", slug="invalid_entropy") from error
    entropy.check(value)
    return value


def _timestamp_ns(value: object) -> int | None:
    """Unix nanoseconds of an RFC 3339 string or of a number of seconds."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11:
        return value * 10**9 if isinstance(value, int) else round(value * 1e9)
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        date, clock_time, fraction, zone = match.groups()
        try:
            moment = datetime.fromisoformat(f"{date}T{clock_time}{'+00:00' if zone in 'Zz' else zone}")
        except ValueError:
            pass
        else:
            return int(moment.timestamp()) * 10**9 + int((fraction or "0").ljust(9, "0"))
    raise Invalid("timestamp must be RFC 3339 or unix seconds.", slug="invalid_timestamp")
