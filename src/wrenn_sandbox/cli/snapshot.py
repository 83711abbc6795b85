"""``wrenn snapshot``: create, list, delete."""

from __future__ import annotations

import json
from typing import Annotated
from urllib.parse import quote

import typer

from wrenn_sandbox.cli.api import Api, Json, items_of
from wrenn_sandbox.cli.api import run as _run
from wrenn_sandbox.cli.sandbox import MOMENT_S, JsonFlag
from wrenn_sandbox.cli.table import show

app = typer.Typer(help="Moments of sandboxes, from which new ones are made.", no_args_is_help=True)


@app.command()
def create(
    sandbox_id: str,
    name: Annotated[str, typer.Option(help="1 to 64 of a-z A-Z 0-9 . _ -; default: template-<8 hex>.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a snapshot of this name.")] = False,
    leave_paused: Annotated[bool, typer.Option("--leave-paused", help="Leave the sandbox paused there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep this moment of a sandbox under a name, and print the name. The sandbox keeps running."""
    body: Json = {"sandbox_id": sandbox_id, "leave_paused": leave_paused} | ({"name": name} if name else {})
    path = f"/v1/snapshots{'?overwrite=true' if overwrite else ''}"
    answer = _run(lambda api: api.call("POST", path, body, timeout_s=MOMENT_S))
    print(json.dumps(answer) if as_json else answer["name"])


@app.command("list")
def list_(
    kind: Annotated[str, typer.Option("--type", help="base or snapshot; default: both.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List what sandboxes can be made from."""
    query = f"?type={quote(kind, safe='')}" if kind else ""
    items = items_of(_run(lambda api: api.call("GET", f"/v1/snapshots{query}")))
    if as_json:
        print(json.dumps(items))
        return
    columns = {"NAME": "name", "TYPE": "type", "VCPUS": "vcpus", "MEMORY": "memory_mb", "BYTES": "size_bytes"}
    show(columns | {"CREATED": "created_at"}, items)


@app.command()
def delete(names: list[str], as_json: JsonFlag = False) -> None:
    """Delete snapshots. Sandboxes that were made from them go on."""

    async def delete_all(api: Api) -> None:
        for name in names:
            await api.call("DELETE", f"/v1/snapshots/{quote(name, safe='')}")

    _run(delete_all)
    if as_json:
        print(json.dumps({"deleted": names}))
