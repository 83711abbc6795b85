"""``wrenn sandbox``: create, list, exec, shell, cp, kill; pause, resume, fork, rollback, snapshots."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from wrenn_sandbox.cli import terminal
from wrenn_sandbox.cli.api import Api, Json, items_of
from wrenn_sandbox.cli.api import run as _run
from wrenn_sandbox.cli.table import show
from wrenn_sandbox.core.errors import Invalid

app = typer.Typer(help="Make and use sandboxes.", no_args_is_help=True)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON.")]
#: Everything that changed is written to a disk, or read from it.
MOMENT_S = 360


@app.command()
def create(
    template: Annotated[str, typer.Argument(help="What to make it from.")] = "base",
    vcpus: Annotated[int, typer.Option(help="vCPUs; rounds up to 1, 2, 4 or 8.")] = 1,
    memory: Annotated[int, typer.Option(help="Memory in MiB; rounds up.")] = 512,
    timeout: Annotated[int, typer.Option(help="Idle timeout in seconds; 0 = never.")] = 300,
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, repeatable.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for every process in it, repeatable.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a sandbox and print its id."""
    body = {
        "template": template,
        "vcpus": vcpus,
        "memory_mb": memory,
        "timeout_sec": timeout,
        "metadata": _pairs(metadata),
        "envs": _pairs(env),
    }
    answer = _run(lambda api: api.call("POST", "/v1/sandboxes", body, timeout_s=300))
    print(json.dumps(answer) if as_json else answer["id"])


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the sandboxes that are alive."""
    answer = _run(_list_all)
    if as_json:
        print(json.dumps(answer))
        return
    columns = {"ID": "id", "STATUS": "status", "TEMPLATE": "template", "VCPUS": "vcpus", "MEMORY": "memory_mb"}
    show(columns | {"CREATED": "created_at"}, answer)


@app.command("exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def exec_(
    sandbox_id: str,
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    cwd: Annotated[str, typer.Option(help="Working directory.")] = "",
    user: Annotated[str, typer.Option(help="User to run as.")] = "",
    timeout: Annotated[int, typer.Option(help="Seconds until the command is killed.")] = 60,
    env: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, repeatable.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a command; its output, errors and exit code become this command's."""
    command = command[1:] if command[0] == "--" and len(command) > 1 else command
    body: Json = {"cmd": command[0], "args": command[1:], "timeout_sec": timeout, "envs": _pairs(env)}
    body |= {key: value for key, value in (("cwd", cwd), ("user", user)) if value}
    answer = _run(lambda api: api.call("POST", f"{_path(sandbox_id)}/exec", body, timeout_s=timeout + 30))
    if as_json:
        print(json.dumps(answer))
    else:
        encoded = answer.get("encoding") == "base64"
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            text = str(answer.get(name, ""))
            stream.buffer.write(base64.b64decode(text) if encoded else text.encode())
            stream.flush()
    code = answer.get("exit_code", 0)
    raise typer.Exit(code if isinstance(code, int) and 0 <= code < 256 else 1)


@app.command()
def shell(sandbox_id: str) -> None:
    """Open a terminal in a sandbox."""
    raise typer.Exit(_run(lambda api: terminal.attach(api, f"{_path(sandbox_id)}/pty")))


@app.command()
def cp(source: str, destination: str) -> None:
    """Copy a file: LOCAL SANDBOX:PATH or SANDBOX:PATH LOCAL."""
    source_id, source_path = _split(source)
    target_id, target_path = _split(destination)
    if bool(source_id) == bool(target_id):
        raise Invalid("Exactly one side must be SANDBOX:PATH.", slug="invalid_path")
    if target_id:
        local = Path(source_path)
        if not local.is_file():
            raise Invalid(f"{local} is not a file.", slug="invalid_path")
        remote = target_path + local.name if target_path.endswith("/") else target_path
        _run(lambda api: api.upload(f"{_path(target_id)}/files?path={quote(remote, safe='')}", local))
        return
    local = Path(destination)
    local = local / Path(source_path).name if local.is_dir() else local
    _run(lambda api: _download(api, f"{_path(source_id)}/files?path={quote(source_path, safe='')}", local))


@app.command()
def kill(sandbox_ids: list[str], as_json: JsonFlag = False) -> None:
    """Destroy sandboxes."""

    async def destroy(api: Api) -> None:
        for sandbox_id in sandbox_ids:
            await api.call("DELETE", _path(sandbox_id))

    _run(destroy)
    if as_json:
        print(json.dumps({"killed": sandbox_ids}))


@app.command()
def pause(sandbox_id: str, as_json: JsonFlag = False) -> None:
    """Keep a sandbox's memory, processes and files on disk and free everything else."""
    _change(sandbox_id, "pause", None, as_json=as_json)


@app.command()
def resume(
    sandbox_id: str,
    timeout: Annotated[int | None, typer.Option(help="New idle timeout in seconds; 0 = never.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Go on where a sandbox was paused."""
    _change(sandbox_id, "resume", None if timeout is None else {"timeout_sec": timeout}, as_json=as_json)


@app.command()
def fork(
    sandbox_id: str,
    count: Annotated[int, typer.Option(help="How many children, 1 to 100.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Make children that begin where a sandbox is now, and print their ids."""
    path = f"{_path(sandbox_id)}/fork"
    answer = _run(lambda api: api.call("POST", path, {"count": count}, timeout_s=MOMENT_S))
    print(json.dumps(answer) if as_json else "\n".join(str(child["id"]) for child in items_of(answer)))


@app.command()
def rollback(
    sandbox_id: str,
    snapshot: Annotated[str, typer.Argument(help="A name or id that `wrenn sandbox snapshots` lists.")],
    as_json: JsonFlag = False,
) -> None:
    """Put a sandbox back to a moment of its history, in place. What it did since is lost."""
    _change(sandbox_id, "rollback", {"snapshot": snapshot}, as_json=as_json)


@app.command()
def snapshots(sandbox_id: str, as_json: JsonFlag = False) -> None:
    """List the moments that a sandbox can be put back to, oldest first."""
    answer = _run(lambda api: api.call("GET", f"{_path(sandbox_id)}/snapshots"))
    if as_json:
        print(json.dumps(answer))
        return
    columns = {"ID": "id", "KIND": "kind", "NAME": "name", "BYTES": "size_bytes", "CREATED": "created_at"}
    marked = [item | {"now": "*" if item.get("current") else ""} for item in items_of(answer)]
    show({"": "now", **columns, "PARENT": "parent_id"}, marked)


def _change(sandbox_id: str, verb: str, body: object, *, as_json: bool) -> None:
    """Have a sandbox changed and print what it is then."""
    answer = _run(lambda api: api.call("POST", f"{_path(sandbox_id)}/{verb}", body, timeout_s=MOMENT_S))
    print(json.dumps(answer) if as_json else answer["status"])


async def _list_all(api: Api) -> list[Json]:
    items: list[Json] = []
    cursor = ""
    while True:
        page = await api.call("GET", f"/v1/sandboxes?limit=100{cursor}")
        items += items_of(page)
        if not page.get("next_cursor"):
            return items
        cursor = f"&cursor={quote(str(page['next_cursor']), safe='')}"


async def _download(api: Api, path: str, local: Path) -> None:
    if local.exists() and not local.is_file():  # a device or a pipe is written to, not replaced
        with local.open("wb") as file:
            async for chunk in api.download(path):
                file.write(chunk)
        return
    local = local.resolve()
    temporary = local.with_name(local.name + ".part")
    try:
        with temporary.open("wb") as file:
            async for chunk in api.download(path):
                file.write(chunk)
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)


def _path(sandbox_id: str) -> str:
    return f"/v1/sandboxes/{quote(sandbox_id, safe='')}"


def _split(text: str) -> tuple[str, str]:
    head, colon, path = text.partition(":")
    return (head, path) if colon and head.startswith(("sb-", "cl-")) else ("", text)


def _pairs(items: list[str] | None) -> dict[str, str]:
    pairs = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise Invalid(f"{item!r} is not KEY=VALUE.")
        pairs[key] = value
    return pairs
