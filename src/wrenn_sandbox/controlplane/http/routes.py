"""Every endpoint there is, with what it needs: the authorisation table. An endpoint that is not here does not exist."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, FastAPI
from starlette.responses import Response

from wrenn_sandbox.controlplane.http.auth import Access, caller_of
from wrenn_sandbox.controlplane.http.live import Handler, live_endpoint
from wrenn_sandbox.controlplane.http.v1 import (
    commands,
    files,
    host,
    keys,
    models,
    moments,
    sandboxes,
    snapshots,
    streams,
    terminal,
)

OPEN, KEY, KEY_OR_MESSAGE = Access.OPEN, Access.TEAM_KEY, Access.TEAM_KEY_OR_FIRST_MESSAGE
#: The same sandboxes under the path that clients of another generation use.
SANDBOXES, CAPSULES = "/v1/sandboxes", sandboxes.CAPSULES


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One HTTP endpoint. ``answer`` is the model of its success answer, None for no body, bytes for a file."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Response]]
    access: Access
    answer: Any = None
    status: int = 200
    tag: str = "sandboxes"


@dataclass(frozen=True, slots=True)
class LiveEndpoint:
    """One WebSocket endpoint."""

    path: str
    handler: Handler
    access: Access


_ONE = f"{SANDBOXES}/{{sandbox_id}}"
_KEYS = list[models.KeyOut]
_SNAPSHOTS = list[models.SnapshotOut]

HTTP = (
    Endpoint("GET", "/health", host.get_health, OPEN, models.HealthOut, tag="platform"),
    Endpoint("GET", "/v1/hosts/current", host.get_current_host, KEY, models.HostOut, tag="platform"),
    Endpoint("POST", SANDBOXES, sandboxes.create_sandbox, KEY, models.SandboxOut, 201),
    Endpoint("GET", SANDBOXES, sandboxes.list_sandboxes, KEY, models.SandboxesOut),
    Endpoint("GET", _ONE, sandboxes.get_sandbox, KEY, models.SandboxOut),
    Endpoint("PATCH", _ONE, sandboxes.change_sandbox, KEY, models.SandboxOut),
    Endpoint("DELETE", _ONE, sandboxes.destroy_sandbox, KEY, None, 204),
    Endpoint("POST", f"{_ONE}/ping", sandboxes.ping_sandbox, KEY, None, 204),
    Endpoint("POST", f"{_ONE}/pause", moments.pause_sandbox, KEY, models.SandboxOut, tag="snapshots"),
    Endpoint("POST", f"{_ONE}/resume", moments.resume_sandbox, KEY, models.SandboxOut, tag="snapshots"),
    Endpoint("POST", f"{_ONE}/fork", moments.fork_sandbox, KEY, models.ForkOut, 201, "snapshots"),
    Endpoint("POST", f"{_ONE}/rollback", moments.rollback_sandbox, KEY, models.SandboxOut, tag="snapshots"),
    Endpoint("GET", f"{_ONE}/snapshots", moments.get_history, KEY, models.HistoryOut, tag="snapshots"),
    Endpoint("POST", "/v1/snapshots", snapshots.create_snapshot, KEY, models.SnapshotOut, 201, "snapshots"),
    Endpoint("GET", "/v1/snapshots", snapshots.list_snapshots, KEY, _SNAPSHOTS, tag="snapshots"),
    Endpoint("DELETE", "/v1/snapshots/{name}", snapshots.delete_snapshot, KEY, None, 204, "snapshots"),
    Endpoint("POST", f"{_ONE}/exec", commands.exec_command, KEY, models.ExecOut, tag="commands"),
    Endpoint("GET", f"{_ONE}/processes", commands.list_processes, KEY, models.ProcessesOut, tag="commands"),
    Endpoint("DELETE", f"{_ONE}/processes/{{selector}}", commands.kill_process, KEY, None, 204, "commands"),
    Endpoint("GET", f"{_ONE}/files", files.read_file, KEY, bytes, tag="files"),
    Endpoint("PUT", f"{_ONE}/files", files.put_file, KEY, None, 204, "files"),
    Endpoint("POST", f"{_ONE}/files/read", files.read_named_file, KEY, bytes, tag="files"),
    Endpoint("POST", f"{_ONE}/files/write", files.write_form, KEY, None, 204, "files"),
    Endpoint("POST", f"{_ONE}/files/stream/read", files.stream_named_file, KEY, bytes, tag="files"),
    Endpoint("POST", f"{_ONE}/files/stream/write", files.write_streamed_form, KEY, None, 204, "files"),
    Endpoint("POST", "/v1/api-keys", keys.create_key, KEY, models.NewKeyOut, 201, "keys"),
    Endpoint("GET", "/v1/api-keys", keys.get_keys, KEY, _KEYS, tag="keys"),
    Endpoint("DELETE", "/v1/api-keys/{key_id}", keys.delete_key, KEY, None, 204, "keys"),
)

LIVE = (
    LiveEndpoint(f"{_ONE}/exec/stream", streams.exec_stream, KEY_OR_MESSAGE),
    LiveEndpoint(f"{_ONE}/pty", terminal.pty, KEY_OR_MESSAGE),
    LiveEndpoint(f"{_ONE}/processes/{{selector}}/stream", streams.process_stream, KEY_OR_MESSAGE),
)


def install(app: FastAPI) -> None:
    """Add all endpoints, those of sandboxes under both prefixes."""
    for endpoint in HTTP:
        _add(app, endpoint, endpoint.path, in_schema=True)
        if endpoint.path.startswith(SANDBOXES):
            _add(app, endpoint, CAPSULES + endpoint.path.removeprefix(SANDBOXES), in_schema=False)
    for live in LIVE:
        for path in (live.path, CAPSULES + live.path.removeprefix(SANDBOXES)):
            app.add_api_websocket_route(path, live_endpoint(live.handler))


def _add(app: FastAPI, endpoint: Endpoint, path: str, *, in_schema: bool) -> None:
    app.add_api_route(
        path,
        endpoint.handler,
        methods=[endpoint.method],
        status_code=endpoint.status,
        tags=[endpoint.tag],
        operation_id=endpoint.handler.__name__,
        response_model=None,
        response_class=Response,
        responses=_responses(endpoint),
        dependencies=[] if endpoint.access is OPEN else [Depends(caller_of)],
        include_in_schema=in_schema,
    )


def _responses(endpoint: Endpoint) -> dict[int | str, dict[str, Any]]:
    failures: dict[int | str, dict[str, Any]] = {
        "default": {"model": models.ErrorOut, "description": "What went wrong, with a stable code."}
    }
    if endpoint.answer is bytes:
        binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        return failures | {200: {"description": "The content.", "content": binary}}
    if endpoint.answer is None:
        return failures | {endpoint.status: {"description": "Done."}}
    success: dict[int | str, dict[str, Any]] = {endpoint.status: {"model": endpoint.answer, "description": "Done."}}
    if endpoint.handler is commands.exec_command:
        success[202] = {"model": models.BackgroundOut, "description": "Started in the background."}
    return failures | success
