"""``{port}-{sandbox}.domain``: requests and WebSockets for a port of a sandbox, passed on through its host agent.

Whoever knows a sandbox's id, 122 random bits, may talk to its ports; the daemon's own port is never passed on.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import Any

import aiohttp
import structlog

from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.usecases.find_sandboxes import find_anyones
from wrenn_sandbox.controlplane.usecases.issue_keys import holds_key
from wrenn_sandbox.core.errors import Invalid, Unavailable, WrennError
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.slots import ENVD_PORT
from wrenn_sandbox.rpc.relay import (
    FORWARDED_AUTHORIZATION,
    Receive,
    Scope,
    Send,
    UpgradeRefused,
    as_target,
    refuse,
    relay_http,
    relay_websocket,
)

_TRANSITION = frozenset({State.PENDING, State.STARTING, State.PAUSING, State.RESUMING})
_BROWSER = re.compile(r"mozilla|chrome|safari|firefox|edge|opera|msie", re.IGNORECASE)
_SCRIPT_MODES = frozenset({"cors", "no-cors", "same-origin", "websocket"})
_MAX_PORT = 65_535

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Target:
    """What a host name asks for, not yet checked."""

    port: str
    sandbox: str


@dataclass(frozen=True, slots=True)
class Refusal(Exception):
    """Why a request is not passed on. Without a ``sandbox`` the answer is plain text: the name itself is wrong."""

    status: int
    message: str
    sandbox: str = ""
    port: int = 0


def target_of(host: str, domain: str) -> Target | None:
    """The target when ``host`` (a Host header) is a name of ours; None when the request is for the API itself."""
    name = host.lower().rsplit(":", 1)[0] if not host.endswith("]") else host
    label, dot, rest = name.partition(".")
    port, dash, sandbox = label.partition("-")
    if not (dot and dash and port.isascii() and port.isdigit()):
        return None
    return Target(port, sandbox) if rest in (domain.lower().rsplit(":", 1)[0], "localhost") else None


def parse(target: Target) -> tuple[SandboxId, int]:
    """The sandbox and port of a target; a bare UUID or base36 form names a sandbox too. Raises Refusal."""
    port = int(target.port[:6])
    if not 1 <= port <= _MAX_PORT:
        raise Refusal(400, f"{target.port[:20]} is not a port.")
    prefixed = target.sandbox if target.sandbox.startswith(("sb-", "cl-")) else f"sb-{target.sandbox}"
    try:
        return SandboxId.parse(prefixed), port
    except Invalid:
        raise Refusal(400, f"{target.sandbox[:80]} is not the id of a sandbox.") from None


class Proxy:
    """The ASGI application behind the sandboxes' names."""

    def __init__(self, platform: Platform, session: aiohttp.ClientSession) -> None:
        self._platform, self._session = platform, session

    async def serve(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request or WebSocket on, or say why not."""
        try:
            sandbox, port = parse(target)
            await self._check(sandbox, port, target.sandbox)
            try:
                await self._relay(sandbox, port, scope, receive, send)
            except UpgradeRefused as error:
                raise Refusal(error.status, error.message, target.sandbox, port) from error
            except Unavailable as error:
                _log.warning("host agent not reached", sandbox=str(sandbox), reason=error.message)
                raise Refusal(502, "The host of the sandbox does not answer", target.sandbox, port) from error
        except Refusal as refusal:
            body, content_type = _words(refusal, scope)
            await refuse(scope, send, refusal.status, body, content_type)

    async def _check(self, sandbox: SandboxId, port: int, shown: str) -> None:
        if port == ENVD_PORT:
            raise Refusal(403, f"Port {ENVD_PORT} belongs to the sandbox's daemon and is not reachable", shown, port)
        try:
            row = await find_anyones(self._platform, sandbox)
        except WrennError as error:
            raise Refusal(503, error.message, shown) from error
        if row is not None and row.state in _TRANSITION:
            raise Refusal(409, f"The sandbox is {row.state.value}", shown)
        if row is None or row.state is not State.RUNNING:
            raise Refusal(502, "The sandbox was not found", shown)

    async def _relay(self, sandbox: SandboxId, port: int, scope: Scope, receive: Receive, send: Send) -> None:
        asked = as_target(scope.get("raw_path") or scope["path"].encode(), scope["query_string"])
        url = f"{self._platform.agent.url}/proxy/{sandbox}/{port}{asked}"
        drop = {"authorization", FORWARDED_AUTHORIZATION}
        extra = [("Authorization", self._platform.agent.bearer)]
        for name, value in scope["headers"]:
            text = value.decode("latin-1")
            if name.lower() == b"authorization":
                extra.append((FORWARDED_AUTHORIZATION, text))
            if name.lower() == b"x-api-key" and holds_key(text):
                drop.add("x-api-key")  # a team's key is nothing that untrusted code should see
        relay = relay_http if scope["type"] == "http" else relay_websocket
        await relay(scope, receive, send, self._session, url, headers_drop=drop, extra_headers=extra)


def _words(refusal: Refusal, scope: Scope) -> tuple[bytes, str]:
    if not refusal.sandbox:
        return refusal.message.encode(), "text/plain; charset=utf-8"
    if _wants_html(scope):
        where = f"{refusal.sandbox}, port {refusal.port}" if refusal.port else refusal.sandbox
        page = f"<html><head><title>{refusal.status}</title></head><body><h1>{html.escape(refusal.message)}</h1>"
        return f"{page}<p>Sandbox {html.escape(where)}</p></body></html>".encode(), "text/html; charset=utf-8"
    body: dict[str, Any] = {"sandboxId": refusal.sandbox, "message": refusal.message, "code": refusal.status}
    if refusal.port:
        body["port"] = refusal.port
    return json.dumps(body).encode(), "application/json; charset=utf-8"


def _wants_html(scope: Scope) -> bool:
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if scope["type"] != "http" or not _BROWSER.search(headers.get(b"user-agent", "")):
        return False
    if headers.get(b"sec-fetch-mode", "") in _SCRIPT_MODES or b"x-requested-with" in headers:
        return False
    accept = headers.get(b"accept", "")
    return not ("application/json" in accept and "text/html" not in accept)
