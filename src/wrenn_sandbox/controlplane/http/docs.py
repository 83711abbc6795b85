"""The API's own description: ``/openapi.json``, and ``/docs``, one page that needs nothing from anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from wrenn_sandbox import __version__
from wrenn_sandbox.controlplane.http.routes import HTTP, LIVE

TITLE = "Wrenn Sandbox"
_SUMMARY = (
    "Every piece of untrusted code in a microVM of its own. Send an API key in `X-API-Key`. "
    "Errors are `{error: {code, message}}`; codes are stable. `/v1/capsules` answers as `/v1/sandboxes` does."
)
_FORM = {
    "type": "object",
    "required": ["path", "file"],
    "properties": {
        "path": {"type": "string"},
        "user": {"type": "string"},
        "file": {"type": "string", "format": "binary"},
    },
}
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BODIES = {
    "write_form": {"multipart/form-data": {"schema": _FORM}},
    "write_streamed_form": {"multipart/form-data": {"schema": _FORM}},
    "put_file": _BINARY,
}
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.5 ui-monospace, monospace; }
section { border-top: 1px solid #8884; padding: .5rem 0 1rem; }
h3 code { font-size: 1rem; } .method { display: inline-block; min-width: 4.5rem; font-weight: 700; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top; }
nav a { margin-right: 1rem; }
"""


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    document = get_openapi(title=TITLE, version=__version__, summary=_SUMMARY, routes=app.routes)
    document["components"].setdefault("securitySchemes", {})["key"] = {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
    }
    open_paths = {endpoint.path for endpoint in HTTP if endpoint.access.name == "OPEN"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # malformed requests are 400, in the envelope
            if path not in open_paths:
                operation["security"] = [{"key": []}]
            if content := _BODIES.get(operation["operationId"]):
                operation["requestBody"] = {"required": True, "content": content}
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    return document


def as_text(document: dict[str, Any]) -> str:
    """The document as it is checked in."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def install(app: FastAPI) -> None:
    """Serve both. They are made at the first request and kept."""
    made: dict[str, Response] = {}

    async def openapi(_request: Request) -> Response:
        if "openapi" not in made:
            made["openapi"] = Response(json.dumps(describe(app)), media_type="application/json")
        return made["openapi"]

    async def docs(_request: Request) -> Response:
        if "docs" not in made:
            made["docs"] = HTMLResponse(page(describe(app)))
        return made["docs"]

    app.add_route("/openapi.json", openapi, include_in_schema=False)
    app.add_route("/docs", docs, include_in_schema=False)


def page(document: dict[str, Any]) -> str:
    """The document as one HTML page."""
    schemas = document["components"]["schemas"]
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{TITLE}: API</title><style>{_STYLE}</style>",
        f"</head><body><h1>{TITLE}</h1><p>{_text(_SUMMARY)}</p><nav><a href=/openapi.json>openapi.json</a>",
        "<a href=#live>WebSockets</a><a href=#schemas>Objects</a></nav>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(method, path, operation)
    parts.append("<h2 id=live>WebSockets</h2>")
    for live in LIVE:
        parts.append(f"<section><h3><code><span class=method>WS</span>{_text(live.path)}</code></h3>")
        parts.append(f"<p>{_text(live.handler.__doc__ or '')}</p><p>Needs {live.access.value}.</p></section>")
    parts.append("<h2 id=schemas>Objects</h2>")
    for name, schema in schemas.items():
        parts += _schema(name, schema)
    return "\n".join([*parts, "</body></html>"])


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    heading = f"<span class=method>{method.upper()}</span>{_text(path)}"
    yield f"<section id={_text(operation['operationId'])}><h3><code>{heading}</code></h3>"
    yield f"<p>{_text(operation.get('description', operation.get('summary', '')))}</p><table>"
    for parameter in operation.get("parameters", ()):
        kind = _kind(parameter["schema"])
        note = _text(parameter.get("description", ""))
        yield f"<tr><td><code>{_text(parameter['name'])}</code><td>{parameter['in']}<td>{kind}<td>{note}"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<tr><td>body<td>{_text(media)}<td>{_kind(content['schema'])}<td>"
    for status, response in operation["responses"].items():
        for media, content in response.get("content", {"": {"schema": {}}}).items():
            note = _text(response["description"])
            yield f"<tr><td>{status}<td>{_text(media)}<td>{_kind(content['schema'])}<td>{note}"
    yield "</table></section>"


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"<section id=schema-{_text(name)}><h3>{_text(name)}</h3><p>{_text(schema.get('description', ''))}</p><table>"
    if "enum" in schema:
        yield f"<tr><td>one of<td>{_text(', '.join(map(str, schema['enum'])))}"
    for field, about in schema.get("properties", {}).items():
        needed = "required" if field in schema.get("required", ()) else ""
        note = _text(about.get("description", ""))
        yield f"<tr><td><code>{_text(field)}</code><td>{_kind(about)}<td>{needed}<td>{note}"
    yield "</table></section>"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = _text(schema["$ref"].rsplit("/", 1)[-1])
        return f"<a href=#schema-{name}>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(_kind(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if "enum" in schema:
        return _text(", ".join(map(str, schema["enum"])))
    return _text(schema.get("format") or schema.get("type") or "")


def _text(text: str) -> str:
    return html.escape(" ".join(text.replace("``", "").split()))
