"""``wrenn sandbox``: create, list, exec, shell, cp, kill."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import quote

import typer

from wrenn_sandbox.cli import terminal
from wrenn_sandbox.cli.api import Api, Credentials, Json, connect
from wrenn_sandbox.core.errors import Invalid

T = TypeVar("T")

app = typer.Typer(help="Make and use sandboxes.", no_args_is_help=True)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON.")]


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
    from rich.console import Console  # what no other command should wait for
    from rich.table import Column, Table

    table = Table(Column("ID", no_wrap=True), "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "CREATED", box=None)
    for item in answer:
        table.add_row(*(str(item.get(k, "")) for k in ("id", "status", "template", "vcpus", "memory_mb", "created_at")))
    Console().print(table)


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


async def _list_all(api: Api) -> list[Json]:
    items: list[Json] = []
    cursor = ""
    while True:
        page = await api.call("GET", f"/v1/sandboxes?limit=100{cursor}")
        found = page.get("items", page.get("sandboxes", []))
        items += found if isinstance(found, list) else []
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


def _run(use: Callable[[Api], Coroutine[object, object, T]]) -> T:
    async def session() -> T:
        async with connect(Credentials.find()) as api:
            return await use(api)

    return asyncio.run(session())


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
