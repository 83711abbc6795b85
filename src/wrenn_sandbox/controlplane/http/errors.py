"""Errors as answers: one envelope, one place where each kind of failure gets its status.

``{"error": {"code": <slug>, "message": <sentence>}}``, with Retry-After where trying again later may help.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wrenn_sandbox.core.errors import Bug, Invalid, Unauthenticated, WrennError, http_status

#: Slugs of failures that the web framework finds by itself.
_FRAMEWORK_SLUGS = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_MAX_COMPLAINTS = 5

_log = structlog.get_logger()


def envelope(code: str, message: str) -> dict[str, dict[str, str]]:
    """The body of every error answer."""
    return {"error": {"code": code, "message": message}}


def answer(error: WrennError) -> JSONResponse:
    """The answer for a typed error. A Bug says nothing about itself here: the log does."""
    headers = {}
    if error.retry_after_s:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = 'ApiKey header="X-API-Key"'
    return JSONResponse(envelope(error.slug, error.message), http_status(error), headers)


def complaint(errors: Sequence[Any]) -> Invalid:
    """What is wrong with a request, field by field, from pydantic's findings."""
    sentences = []
    for error in errors[:_MAX_COMPLAINTS]:
        where = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
        what = error["msg"].removeprefix("Value error, ").rstrip(".")
        if error["type"] == "extra_forbidden":
            what = "this field is not known; is it misspelt"
        if error["type"] in ("json_invalid", "json_type"):
            where, what = "body", "the body is not valid JSON"
        sentences.append(f"{where}: {what}" if where else what)
    return Invalid("; ".join(sentences) + ".")


def install(app: FastAPI) -> None:
    """Answer every failure of a handler with the envelope."""

    async def typed(_request: Request, error: Exception) -> Response:
        if isinstance(error, Bug) or not isinstance(error, WrennError):
            raise error
        return answer(error)

    async def malformed(_request: Request, error: Exception) -> Response:
        found = error.errors() if isinstance(error, RequestValidationError) else []
        return answer(complaint(found))

    async def framework(_request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        if error.status_code == 400:
            return answer(Invalid(f"{str(error.detail).rstrip('.')}."))
        slug = _FRAMEWORK_SLUGS.get(error.status_code, "http_error")
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = f"{message}: see /docs for what there is."
        return JSONResponse(envelope(slug, message), error.status_code, error.headers)

    async def unexpected(request: Request, error: Exception) -> Response:
        reference = request.scope.get("wrenn.request_id", b"-").decode()
        _log.error("unexpected failure", request=reference, path=request.url.path, exc_info=error)
        sentence = f"This should not have happened; the server's log says more under {reference}."
        return JSONResponse(envelope("internal_error", sentence), 500)

    app.add_exception_handler(WrennError, typed)
    app.add_exception_handler(Exception, unexpected)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, framework)
