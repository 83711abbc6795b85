"""``ANY /proxy/{sandbox}/{port}/{path}``: from the control plane on to a program's port in a sandbox.

HTTP and WebSocket, streaming. The control plane hands the answer on as it is, errors too. A port on
which nothing listens yet is dialled a few times, since programs are often asked for a moment before they listen.
"""

from __future__ import annotations

import json
import re

from wrenn_sandbox.core.errors import Conflict, Denied, Invalid, NotFound, Unavailable, WrennError, http_status
from wrenn_sandbox.core.ids import SandboxId
from wrenn_sandbox.core.lifecycle import State
from wrenn_sandbox.core.slots import ENVD_PORT
from wrenn_sandbox.hostagent.registry import Registry
from wrenn_sandbox.rpc import relay

PREFIX = "/proxy/"
_TARGET = re.compile(rb"/proxy/([^/]+)/([0-9]{1,5})(/.*)?")
#: A pause is over by then, or has failed.
PAUSING_RETRY_S = 2
#: Pauses before the dial is tried again, seconds.
DIAL_PAUSES_S = (0.1, 0.1, 0.2, 0.3, 0.4)


class Proxy:
    """An ASGI application for the paths below ``PREFIX``. The caller is authenticated already."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: relay.Scope, receive: relay.Receive, send: relay.Send) -> None:
        """Serve one request or WebSocket."""
        try:
            await self._relay(scope, receive, send)
        except WrennError as error:
            status, body = refusal(scope["raw_path"], error)
            content, kind = json.dumps(body).encode(), "application/json; charset=utf-8"
            await relay.refuse(scope, send, status, content, kind, retry_after_s=error.retry_after_s)

    async def _relay(self, scope: relay.Scope, receive: relay.Receive, send: relay.Send) -> None:
        sandbox_id, port, path = target(scope["raw_path"])
        sandbox = self._registry.get(sandbox_id)
        if sandbox.state is State.PAUSING:  # which may fail, and then it is there again
            raise Unavailable("The sandbox is being paused.", slug="sandbox_pausing", retry_after_s=PAUSING_RETRY_S)
        async with sandbox.use() as parts:
            url = f"http://{parts.link.slot.host_ip}:{port}{relay.as_target(path, scope['query_string'])}"
            hop = relay.relay_http if scope["type"] == "http" else relay.relay_websocket
            await hop(
                scope,
                receive,
                send,
                parts.relay,
                relay.Upstream(url, DIAL_PAUSES_S),
                headers_drop={"authorization", relay.FORWARDED_AUTHORIZATION},
                extra_headers=_given_back(scope),
            )


def _given_back(scope: relay.Scope) -> list[tuple[str, str]]:
    """The client's own authorization, which travelled under another name."""
    name = relay.FORWARDED_AUTHORIZATION.encode()
    return [("authorization", value.decode("latin-1")) for key, value in scope["headers"] if key == name]


def refusal(raw_path: bytes, error: WrennError) -> tuple[int, dict[str, object]]:
    """Status and body for the user, in the words that clients of this kind of proxy look for.

    A sandbox that is not there and a port that is not open are both 502 and differ by the message.
    """
    match = _TARGET.fullmatch(raw_path)
    status, message = http_status(error), error.message
    if isinstance(error, NotFound | Conflict):
        status, message = 502, "The sandbox was not found"
    elif isinstance(error, relay.DialFailed):
        status, message = 502, "The sandbox is running but port is not open"
    elif isinstance(error, Unavailable) and not error.retry_after_s:
        status = 502
    body: dict[str, object] = {"message": message, "code": status, "error_code": error.slug}
    if match is not None:
        body |= {"sandboxId": match[1].decode("latin-1"), "port": int(match[2])}
    return status, body


def target(raw_path: bytes) -> tuple[SandboxId, int, bytes]:
    """Sandbox, port and the path behind them, still percent-encoded. Raises Invalid or Denied."""
    match = _TARGET.fullmatch(raw_path)
    if match is None:
        raise Invalid("The path must be /proxy/{sandbox}/{port}/{path}.", slug="invalid_proxy_path")
    sandbox_id, port = SandboxId.parse(match[1].decode("latin-1")), int(match[2])
    if not 1 <= port <= 65535:
        raise Invalid(f"There is no port {port}.", slug="invalid_port")
    if port == ENVD_PORT:
        raise Denied(f"Port {ENVD_PORT} is the sandbox's own and is not for the network.", slug="port_reserved")
    return sandbox_id, port, match[3] or b"/"
