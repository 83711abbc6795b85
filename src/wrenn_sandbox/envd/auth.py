"""Who may do what: the access token, signed URLs, and who may call /init.

::

    no token yet ──/init with a token──▶ guarded
        │                                  │
        └ only /health, /init and          └ X-Access-Token on everything but the open routes;
          /snapshot/prepare answer           GET and POST /files also take a signature made from the token

All decisions are pure and compare secrets in constant time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping

from wrenn_sandbox.core.errors import Unauthenticated

#: Need no token, ever. /init decides by itself, see ``check_init``.
OPEN_ROUTES = frozenset({("GET", "/health"), ("POST", "/init"), ("POST", "/snapshot/prepare")})

#: The operation a signature must name on each route that takes one.
SIGNED_OPERATIONS = {("GET", "/files"): "read", ("POST", "/files"): "write"}

EXPIRED = "signature is already expired"  # clients compare this text


def check_request(
    token: str, method: str, path: str, offered: bytes, *, query: Mapping[str, str], now_s: float
) -> None:
    """Let a request pass or raise Unauthenticated.

    ``offered`` is the X-Access-Token header, ``query`` is looked at only on routes that take a signature.
    """
    route = (method, path)
    if route in OPEN_ROUTES:
        return
    if not token:
        raise Unauthenticated("This sandbox is not ready: it has no access token yet.", slug="not_initialized")
    if offered and same(offered, token.encode()):
        return
    operation = SIGNED_OPERATIONS.get(route)
    if operation is None or "signature" not in query:
        raise Unauthenticated("Send the sandbox's access token in the X-Access-Token header.")
    check_signature(token, operation, query, now_s)


def check_signature(token: str, operation: str, query: Mapping[str, str], now_s: float) -> None:
    """Check a signed URL's query; raises Unauthenticated when the signature is wrong or its time is over."""
    expiration = query.get("signature_expiration", "")
    expected = sign(query.get("path", ""), operation, query.get("username", ""), token, expiration)
    if not same(query["signature"].encode("utf-8", "surrogateescape"), expected.encode()):
        raise Unauthenticated("The signature does not fit this path, user and operation.", slug="invalid_signature")
    if expiration and _seconds(expiration) < now_s:
        raise Unauthenticated(EXPIRED, slug="signature_expired")


def sign(path: str, operation: str, username: str, token: str, expiration: str = "") -> str:
    """The signature of a URL: ``v1_`` and unpadded base64 of SHA-256 over the fields joined by colons.

    ``operation`` is ``read`` or ``write``; ``expiration`` is empty or unix seconds in decimal.
    """
    fields = [path, operation, username, token]
    if expiration:
        fields.append(expiration)
    digest = hashlib.sha256(":".join(fields).encode("utf-8", "surrogateescape")).digest()
    return "v1_" + base64.b64encode(digest).decode().rstrip("=")


def check_init(token: str, in_body: str, in_header: bytes) -> None:
    """Who may call /init: anyone while there is no token, then only who knows it.

    The token may be in the body (the same one again) or, to change it, in the X-Access-Token header.
    """
    if not token:
        return
    current = token.encode()
    if not (same(in_body.encode(), current) or same(in_header, current)):
        raise Unauthenticated("This sandbox has an access token already; /init needs the same one.")


def same(left: bytes, right: bytes) -> bool:
    """Equality in a time that does not depend on where they differ."""
    return hmac.compare_digest(left, right)


def _seconds(text: str) -> float:
    """Unix seconds; anything that is not a plain decimal number counts as long over."""
    return float(text) if text.isascii() and text.isdigit() else float("-inf")
